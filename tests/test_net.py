import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from medha_jax.net import (
    TlsFiles,
    is_loopback,
    is_protected,
    join_address,
    listening_sockets,
    named_host,
    split_address,
)

NOT_OURS = "192.0.2.1"  # RFC 5737: an address that no machine has


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


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name have these addresses, as a resolver gives them."""
    found = [
        (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 0)) for one in addresses
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: [one for one in found for _ in range(2)])


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this system has no IPv6")
def test_a_name_of_two_addresses_is_listened_to_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "::1", "127.0.0.1")
    with ExitStack() as opened:
        listeners = [opened.enter_context(one) for one in listening_sockets("localhost", 0)]
        assert [one.getsockname()[0] for one in listeners] == ["::1", "127.0.0.1"]
        assert len({one.getsockname()[1] for one in listeners}) == 1


def test_an_address_that_is_not_ours_is_left_out_beside_another(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, NOT_OURS, "127.0.0.1")
    (listener,) = listening_sockets("localhost", 0)
    with listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        with pytest.raises(OSError, match="in use"):
            listening_sockets("localhost", listener.getsockname()[1])


def test_only_addresses_that_are_not_ours_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, NOT_OURS)
    with pytest.raises(OSError, match="assign requested address"):
        listening_sockets("localhost", 0)
