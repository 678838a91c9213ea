"""Certificates and tokens that are replaced while a server runs, on real sockets."""

import dataclasses
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest

from medha_jax.client import Client, Connection, Finished, ServerError
from medha_jax.config import ConfigError
from medha_jax.net import TlsFiles
from medha_jax.server import renewal
from medha_jax.server.renewal import Renewable
from medha_jax.server.settings import ServerSettings
from medha_jax.server.token_file import Tokens, read_tokens
from tests.server.embedded import running
from tests.server.processes import SIMULATED, ServerProcess, wait_until

OLD, NEW = "the-token-of-before", "the-token-of-later-on"
OF_OLD, OF_NEW = (Tokens({token.encode(): ""}) for token in (OLD, NEW))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pairs `a`, `b` and `c`, each signed by itself, so each is its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("makes certificates with the openssl command")
    folder = tmp_path_factory.mktemp("pairs")
    for name in "abc":
        out = ("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem", "-subj", f"/CN={name}", "-days", "2")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        names = ("-addext", "subjectAltName=IP:127.0.0.1")
        subprocess.run(["openssl", "req", "-x509", *key, *out, *names], check=True, capture_output=True, timeout=30)
    return folder


def mounted(folder, made, name):
    """Point `folder/now` to a new directory with a pair, as Kubernetes replaces a mounted secret."""
    version = folder / f"version-{name}-{time.monotonic_ns()}"
    version.mkdir()
    for kind in ("pem", "key"):
        shutil.copy(made / f"{name}.{kind}", version / f"tls.{kind}")
    (folder / "next").symlink_to(version)
    (folder / "next").rename(folder / "now")


def replace(path, content):
    """Write a file beside it and move it there: no look sees half of it."""
    beside = path.with_name("beside")
    beside.write_text(content)
    beside.rename(path)


def served(address):
    """The certificate that a new handshake gets, DER."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as plain, context.wrap_socket(plain) as wrapped:
        return wrapped.getpeercert(binary_form=True)


def der(path):
    return ssl.PEM_cert_to_DER_cert(path.read_text())


def allowed(connection, refused="UNAUTHENTICATED"):
    """Whether a call of a new connection is answered; otherwise it must be refused with this status."""
    try:
        with Client(connection) as client:
            return bool(client.model(timeout=10))
    except ServerError as error:
        if error.code != refused:
            raise
        return False


def warnings(lines):
    return [line for line in lines if line.startswith("warning: ")]


def test_replaced_files_count_by_themselves_and_broken_ones_are_told_once(made, tmp_path, monkeypatch):
    monkeypatch.setattr(renewal, "LOOK_SECONDS", 0.02)
    mounted(tmp_path, made, "a")
    cert, key, token = tmp_path / "now" / "tls.pem", tmp_path / "now" / "tls.key", tmp_path / "token"
    token.write_text(OLD)
    settings = ServerSettings(port=0, tls=TlsFiles(cert, key), token_file=token, access_log="off")
    with running(settings) as (lines, _):
        address = lines[-1].split()[-1]
        assert served(address) == der(made / "a.pem")
        mounted(tmp_path, made, "b")
        wait_until(lambda: served(address) == der(made / "b.pem"))

        replace(cert, (made / "c.pem").read_text())  # the key is still of another pair
        wait_until(lambda: len(warnings(lines)) == 1)
        assert served(address) == der(made / "b.pem")
        replace(key, (made / "c.key").read_text())
        wait_until(lambda: served(address) == der(made / "c.pem"))

        said = len(warnings(lines))
        for broken in ("no PEM", ""):
            replace(key, broken)
            said += 1
            wait_until(lambda: len(warnings(lines)) == said)  # noqa: B023
        cert.unlink()
        wait_until(lambda: len(warnings(lines)) == said + 1)
        assert f"cannot read {cert}" in lines[-1] and served(address) == der(made / "c.pem")

        old, new = (Connection(address, ca=made / "c.pem", token=held) for held in (OLD, NEW))
        assert allowed(old) and not allowed(new)
        replace(token, f"{OLD}\n{NEW}\n")
        wait_until(lambda: allowed(new))
        assert allowed(old)
        replace(token, NEW)
        wait_until(lambda: not allowed(old))
        said = len(warnings(lines))
        for wrong, why in (
            ("\n", "holds no token"),
            ("short", "line 1: the token is not at least"),
            ("\xe9" * 20, "ASCII"),
        ):
            replace(token, wrong)
            said += 1
            wait_until(lambda: len(warnings(lines)) == said)  # noqa: B023
            assert lines[-1].startswith("warning: the tokens of before stay in use: ") and why in lines[-1]
        time.sleep(20 * renewal.LOOK_SECONDS)
        assert len(warnings(lines)) == said and allowed(new)
        replace(token, OLD)
        wait_until(lambda: allowed(old))
        assert lines[-1] == f"tokens of {token}: read again, for new connections and calls"
        assert not any(held in line for line in lines for held in (OLD, NEW))


def test_an_authority_of_clients_is_renewed(made, tmp_path, monkeypatch):
    monkeypatch.setattr(renewal, "LOOK_SECONDS", 0.02)
    authority = tmp_path / "ca.pem"
    shutil.copy(made / "a.pem", authority)
    tls = TlsFiles(made / "a.pem", made / "a.key", authority)
    with running(ServerSettings(port=0, tls=tls)) as (lines, _):
        address = lines[-1].split()[-1]
        of_a, of_b = (
            Connection(address, ca=made / "a.pem", cert=made / f"{name}.pem", key=made / f"{name}.key") for name in "ab"
        )

        assert allowed(of_a) and not allowed(of_b, "UNAVAILABLE")
        replace(authority, (made / "b.pem").read_text())
        wait_until(lambda: allowed(of_b, "UNAVAILABLE"))
        assert not allowed(of_a, "UNAVAILABLE")


def test_sighup_reads_at_once_and_cuts_no_stream(made, tmp_path):
    """A stream that began before a certificate and a token went goes on to its end."""
    mounted(tmp_path, made, "a")
    token = tmp_path / "token"
    token.write_text(OLD)
    files = ("--tls-cert", tmp_path / "now" / "tls.pem", "--tls-key", tmp_path / "now" / "tls.key")
    with ServerProcess(*SIMULATED, "--tick-ms", 5, *files, "--auth-token-file", token) as server:
        connection = Connection(server.address, ca=made / "a.pem", token=OLD)
        with Client(connection) as client:
            events = iter(client.generate([1, 2], max_tokens=400, timeout=60))
            next(events)
            mounted(tmp_path, made, "b")
            token.write_text(NEW)
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: server.errors.count("read again") == 2, renewal.LOOK_SECONDS + 10)
            assert served(server.address) == der(made / "b.pem")
            newer = dataclasses.replace(connection, ca=made / "b.pem")
            assert not allowed(newer) and allowed(dataclasses.replace(newer, token=NEW))
            *_, last = events
            assert isinstance(last, Finished) and last.usage.output_tokens == 400
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.errors.count("unchanged") == 2)
        assert server.stop() == 0 and "warning" not in server.errors


def test_sighup_cuts_no_stream_of_a_server_without_such_files(simulated):
    with Client(simulated.address) as client:
        events = iter(client.generate([1, 2], max_tokens=50, timeout=60))
        next(events)
        simulated.process.send_signal(signal.SIGHUP)
        *_, last = events
        assert isinstance(last, Finished) and last.usage.output_tokens == 50
    wait_until(lambda: "no files of TLS or tokens" in simulated.errors)


def test_a_change_counts_once_it_was_seen_twice_and_at_once_when_asked(tmp_path):
    """A file that is still written is not read in parts."""
    path = tmp_path / "token"
    path.write_text(OLD)
    tokens = Renewable("tokens", [path], lambda: read_tokens(path))
    assert tokens.look(asked=False) is None
    path.write_text(NEW[:17])
    assert tokens.look(asked=False) is None
    path.write_text(NEW)
    assert tokens.look(asked=False) is None and tokens.value == OF_OLD
    assert "read again" in tokens.look(asked=False) and tokens.value == OF_NEW
    assert tokens.look(asked=False) is None
    path.write_text(OLD)
    assert "read again" in tokens.look(asked=True) and tokens.value == OF_OLD


def test_what_changes_while_it_is_read_is_looked_at_again(tmp_path):
    path = tmp_path / "token"
    path.write_text(OLD)
    writes = []

    def read():
        found = read_tokens(path)
        if writes:
            path.write_text(writes.pop())
        return found

    tokens = Renewable("tokens", [path], read)
    path.write_text("another-one-for-a-moment")
    writes.append(NEW)
    assert tokens.look(asked=True) is None
    tokens.look(asked=False)
    assert tokens.look(asked=False) is None or tokens.value == OF_NEW
    assert tokens.value == OF_NEW


def test_a_pipe_is_read_once(tmp_path):
    """As a shell's <(...) is; reading it again would wait for ever."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(OLD,))
    writer.start()
    tokens = Renewable("tokens", [path], lambda: read_tokens(path))
    writer.join()
    assert tokens.look(asked=False) is None
    assert "unchanged" in tokens.look(asked=True)
    path.unlink()
    path.write_text(NEW)
    assert tokens.look(asked=False) is None and "read again" in tokens.look(asked=False)
    path.unlink()
    os.mkfifo(path)
    assert "is not a regular file" in tokens.look(asked=True) and tokens.value == OF_NEW


def test_a_file_that_is_far_too_large_is_refused(tmp_path):
    path = tmp_path / "token"
    with path.open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(ConfigError, match=r"larger than 4,194,304 bytes"):
        read_tokens(path)
