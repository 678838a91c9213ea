"""Through which proxy a connection goes: loopback through none."""

import socket
import threading

import pytest

from medha_jax.client import Client, Connection, InvalidSettingError, ServerError
from tests.server.processes import SIMULATED, ServerProcess


@pytest.fixture(scope="module")
def server():
    with ServerProcess(*SIMULATED) as started:
        yield started


@pytest.fixture
def proxied(monkeypatch):
    """A machine whose connections go through a proxy; gives what the proxy was asked for."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse():
            while True:
                try:
                    taken, _ = listening.accept()
                except OSError:
                    return
                with taken:
                    asked.append(taken.recv(1000).split(b"\r\n")[0].decode())
                    taken.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listening.getsockname()[1]}")
        yield asked
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.mark.parametrize("form", ["{}", "dns:///{}", "ipv4:{}", "localhost:{port}"])
def test_loopback_goes_through_no_proxy(server, proxied, form):
    port = server.address.rpartition(":")[2]
    with Client(form.format(server.address, port=port)) as client:
        assert client.model(timeout=20).name == "simulated"
    assert proxied == []


def test_another_machine_still_goes_through_the_proxy(proxied):
    with Client("a-server.invalid:9320") as client, pytest.raises(ServerError):
        client.model(timeout=20)
    assert proxied and proxied[0].startswith("CONNECT a-server.invalid:9320 ")


@pytest.mark.parametrize("named", [dict(address="\udcff:1"), dict(address="a:1", server_name="\udcff")])
def test_an_address_that_is_no_text_is_refused(named):
    with pytest.raises(InvalidSettingError, match="is not valid Unicode"):
        Connection(**named)


def test_a_token_is_not_shown():
    assert "secret" not in repr(Connection("localhost:1", token="secret"))
