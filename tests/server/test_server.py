"""A server embedded in a program: `serve` called directly, on a real socket."""

import asyncio
import gc
import http.client
import re
import signal
import socket

import pytest

from medha_jax.client import Client, Finished, ServerError
from medha_jax.config import ConfigError
from medha_jax.net import TlsFiles
from medha_jax.server.listening import ListenError
from medha_jax.server.server import serve
from medha_jax.server.settings import ServerSettings
from tests.server.embedded import embedded, running
from tests.server.processes import idle, wait_until

UNPROTECTED = "prompts would travel unprotected to {}; give --tls-cert and --tls-key"


@pytest.mark.parametrize(("host", "named"), [("0.0.0.0", "0.0.0.0"), ("", "every address")])
def test_who_embeds_it_is_refused_an_open_address_without_protection(host, named):
    """Nothing is listened on, and nothing is loaded."""
    model, loader = embedded()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match=UNPROTECTED.format(named)):
        asyncio.run(serve(ServerSettings(host=host, port=port), model, loader))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)
    assert not loader.loads


def test_tls_files_and_tokens_are_checked_before_it_listens(tmp_path):
    missing = tmp_path / "none.pem"
    for settings in (
        ServerSettings(host="0.0.0.0", port=0, tls=TlsFiles(missing, missing)),
        ServerSettings(port=0, token_file=missing),
    ):
        model, loader = embedded()
        with pytest.raises(ConfigError, match=r"cannot read .*none\.pem"):
            asyncio.run(serve(settings, model, loader))
        assert not loader.loads


@pytest.mark.parametrize("given", [{}, {"host": "0.0.0.0", "insecure": True}])
def test_it_serves_from_a_thread_until_its_event_is_set(given, tmp_path):
    trace = tmp_path / "trace.json"
    with running(ServerSettings(port=0, metrics_port=0, trace=trace, **given)) as (lines, loader):
        assert lines[0].startswith("metrics on http://") and lines[-1].startswith("serving simulated on ")
        address = "127.0.0.1:" + lines[-1].rpartition(":")[2]
        with Client(address) as client:
            *_, last = client.generate([1, 2, 3], max_tokens=4)
            assert isinstance(last, Finished)
            assert client.model().context_tokens == 512
        assert (loader.loads, loader.closes) == (1, 0)
    assert loader.closes == 1
    assert "decode" in trace.read_text()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this system listens on IPv4 and IPv6 apart")
@pytest.mark.parametrize("host", ["::", "", "localhost"])
def test_every_address_is_the_same_for_grpc_http_and_metrics(host):
    given = ServerSettings(host=host, port=0, http_port=0, metrics_port=0, metrics_host=host, insecure=True)
    with running(given) as (lines, _):
        ports = {line.split()[0]: int(re.search(r":(\d+)(?:/\w+)?$", line)[1]) for line in lines}
        assert set(ports) == {"metrics", "OpenAI", "serving"}
        for address in ("127.0.0.1", "::1") if host == "::" else ("127.0.0.1",):
            for port in ports.values():
                socket.create_connection((address, port), 5).close()
        with Client(f"127.0.0.1:{ports['serving']}") as client:
            assert client.load().accepting
        connected = http.client.HTTPConnection("127.0.0.1", ports["OpenAI"], timeout=60)
        connected.request("POST", "/tokenize", b'{"prompt": "a"}')
        assert connected.getresponse().status == 200
        connected.close()
        peers = {line.split("peer=")[1].rpartition(":")[0] for line in lines if "peer=" in line}
        assert peers == {"ipv4:127.0.0.1"}


def test_an_error_in_the_parts_of_a_prompt_ends_its_stream(monkeypatch):
    with running(ServerSettings(port=0), context=2**18) as (lines, loader):

        def broken(number, ids, done):
            raise RuntimeError("nobody expected this")

        monkeypatch.setattr(loader.service, "extend", broken)
        address = "127.0.0.1:" + lines[-1].rpartition(":")[2]
        with Client(address) as client, pytest.raises(ServerError, match="an error in the server") as raised:
            list(client.generate([5] * 2**17, max_tokens=1, timeout=60))
        assert raised.value.code == "INTERNAL"
        with Client(address) as client:
            *_, last = client.generate([5], max_tokens=1)
            assert isinstance(last, Finished)
            wait_until(lambda: idle(client), 30)


@pytest.mark.parametrize("taken", ["port", "http_port", "metrics_port"])
def test_who_cannot_listen_leaves_the_signals_and_the_other_ports_as_they_were(taken):
    wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in wanted]
    with socket.create_server(("127.0.0.1", 0)) as other, socket.create_server(("127.0.0.1", 0)) as free:
        ports = {"port": free.getsockname()[1], "http_port": 0, "metrics_port": 0} | {taken: other.getsockname()[1]}
        free.close()
        model, loader = embedded()
        with pytest.raises(ListenError, match="Address already in use"):
            asyncio.run(serve(ServerSettings(**ports), model, loader))
        assert [signal.getsignal(number) for number in wanted] == before and not loader.loads
        if taken != "port":
            socket.create_server(("127.0.0.1", ports["port"])).close()


def test_what_is_loaded_is_looked_through_by_no_collection():
    """Whoever's loader it is: a full collection would stop every stream for as long as it takes."""
    mark = {"one": []}
    assert any(one is mark for one in gc.get_objects())
    with running(ServerSettings(port=0)) as (_, loader):
        assert loader.loads == 1
        assert not any(one is mark for one in gc.get_objects())


def test_biases_and_allowed_tokens_of_a_client_decide_what_is_sampled(client):
    *deltas, last = client.generate([5], max_tokens=6, logit_bias={7: 100, 8: 100.0}, allowed_token_ids=[9, 7])
    assert [token for delta in deltas[1:] for token in delta.token_ids] == [7] * 6 and last.reason == "length"
    *deltas, last = client.generate([5], max_tokens=6, allowed_token_ids=[1])  # the model's own end
    assert (last.reason, last.matched) == ("stop", 1)
