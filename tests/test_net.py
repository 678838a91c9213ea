from pathlib import Path

import pytest

from medha_jax.net import TlsFiles, is_loopback, is_protected, join_address, named_host, split_address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_these_hosts_are_this_machine(host: str) -> None:
    assert is_loopback(host) and is_protected(host, None, False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_others_need_tls_or_consent(host: str) -> None:
    assert not is_loopback(host) and not is_protected(host, None, False)
    assert is_protected(host, None, True) and is_protected(host, TlsFiles(Path("cert"), Path("key")), False)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "example.org"])
def test_an_address_is_split_as_it_was_joined(host: str) -> None:
    assert split_address(join_address(host, 65535)) == (host, 65535)


@pytest.mark.parametrize("address", ["", "host", "host:", ":80", "host:0", "host:65536", "host:80 ", "host:²"])
def test_what_is_no_address_is_none(address: str) -> None:
    assert split_address(address) is None


@pytest.mark.parametrize(
    "target, host",
    [
        ("127.0.0.1:9320", "127.0.0.1"),
        ("localhost", "localhost"),
        ("[::1]:9320", "::1"),
        ("::1", "::1"),
        ("dns:///localhost:9320", "localhost"),
        ("dns:example.org:1", "example.org"),
        ("dns://8.8.8.8/example.org:1", "example.org"),
        ("ipv4:127.0.0.1:9320", "127.0.0.1"),
        ("ipv6:[::1]:9320", "::1"),
        ("", ""),
    ],
)
def test_the_host_of_an_address_as_grpc_takes_it(target: str, host: str) -> None:
    assert named_host(target) == host
