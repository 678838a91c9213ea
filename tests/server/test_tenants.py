"""Tenants of one server: ids, pages, quotas, log and metrics are apart. Ticks are simulated, pages are counted.

That pages of a real model are apart, too, is tested in tests/cli/test_serve.py.
"""

import json
import signal
import threading
import urllib.request

import grpc
import pytest

from medha_jax.client import Accepted, Client, Connection, Delta, Finished, ServerError
from medha_jax.client.connection import SERVICE
from medha_jax.protos import inference_pb2 as pb
from tests.server.processes import SIMULATED, ServerProcess, refusal, wait_until

ONE, SAME, TWO, PLAIN, LATER = (f"{name}-token-{'x' * 12}" for name in ("one", "same", "two", "plain", "later"))
FILE = f"one {ONE}\none {SAME}\ntwo {TWO}\n{PLAIN}\n"
SLOTS, MOST, WAITING = 4, 6, 600  # the last two are each tenant's streams and waiting tokens
PAGE = 64


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    file = tmp_path_factory.mktemp("tenants") / "tokens"
    file.write_text(FILE)
    options = ["--auth-token-file", file, "--prefix-cache", "--tick-ms", 2, "--slots", SLOTS, "--max-output", 4096]
    options += ["--tenant-streams", MOST, "--tenant-queue-tokens", WAITING]
    with ServerProcess(*SIMULATED, *options, "--access-log", "json", "--metrics-port", 0) as started:
        started.file = file
        yield started


@pytest.fixture
def of(server):
    """Clients by token; at the end nothing is open."""
    clients = {}

    def client(token):
        if token not in clients:
            clients[token] = Client(Connection(server.address, token=token))
        return clients[token]

    yield client
    wait_until(lambda: idle_but_for_the_cache(client(ONE)))
    for one in clients.values():
        one.close()


def idle_but_for_the_cache(client):
    load = client.load()
    return (load.running, load.waiting, load.waiting_tokens) == (0, 0, 0)


def begun(client, ids=(5, 6, 7), tokens=4000, **settings):
    """A stream that was accepted."""
    stream = client.generate(ids, max_tokens=tokens, ignore_eos=True, **settings)
    assert isinstance(next(stream), Accepted)
    return stream


def ended(client, ids=(5, 6, 7), **settings):
    *_, last = client.generate(ids, max_tokens=1, ignore_eos=True, timeout=60, **settings)
    assert isinstance(last, Finished)
    return last


def scraped(server):
    url = next(line for line in server.errors.splitlines() if line.startswith("metrics on")).split()[-1]
    text = urllib.request.urlopen(url, timeout=10).read().decode()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}


def logged(server, **wanted):
    lines = [json.loads(line) for line in server.errors.splitlines() if line.startswith("{") and line.endswith("}")]
    return [line for line in lines if wanted.items() <= line.items()]


def test_ids_are_a_tenants_own(of):
    running = begun(of(ONE), request_id="a")
    assert not of(TWO).abort("a") and not of(PLAIN).abort("a")
    ended(of(TWO), request_id="a")
    ended(of(PLAIN), request_id="a")
    error = refusal(of(SAME).generate([5], request_id="a"))
    assert error.code == "ALREADY_EXISTS", "two tokens of one name are one tenant"
    assert isinstance(next(running), Delta)
    other = begun(of(TWO), request_id="a")
    assert of(SAME).abort("a")
    assert refusal(running).code == "CANCELLED"
    assert isinstance(next(other), Delta), "the other one of this id goes on"
    assert of(TWO).abort("a") and not of(TWO).abort("a")
    assert refusal(other).code == "CANCELLED"


def test_ids_of_prompts_in_parts_are_a_tenants_own(server, of):
    start = pb.GenerateStart(settings=pb.GenerateSettings(request_id="p"), prompt_tokens=3)
    parts = [pb.GeneratePart(start=start), pb.GeneratePart(token_ids=pb.PromptIds(ids=[5, 6]))]
    over = threading.Event()

    def sent():
        yield from parts
        over.wait(60)

    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream(
            SERVICE + "GenerateStream", pb.GeneratePart.SerializeToString, pb.GenerateEvent.FromString
        )
        events = call(sent(), metadata=(("authorization", f"Bearer {ONE}"),))
        assert next(events).accepted.request_id == "p"
        assert not of(TWO).abort("p")
        ended(of(TWO), request_id="p")
        assert of(SAME).abort("p")
        with pytest.raises(grpc.RpcError) as raised:
            list(events)
        assert raised.value.code() is grpc.StatusCode.CANCELLED and "aborted" in raised.value.details()
        over.set()


def test_nobody_finds_pages_of_another_tenant(of):
    ids = [5 + number % 1000 for number in range(512)]
    for salt in (None, "its-own"):
        assert ended(of(ONE), ids, cache_salt=salt).usage.cached_tokens == 0
        assert ended(of(ONE), ids, cache_salt=salt).usage.cached_tokens == 512 - PAGE
        assert ended(of(SAME), ids, cache_salt=salt).usage.cached_tokens == 512 - PAGE
    for other in (TWO, PLAIN):
        for salt in (None, "its-own"):
            assert ended(of(other), ids, cache_salt=salt).usage.cached_tokens == 0
        assert ended(of(other), ids, cache_salt="one").usage.cached_tokens == 0
        assert ended(of(other), ids, cache_salt="its-own").usage.cached_tokens == 512 - PAGE


def test_a_flood_of_one_tenant_leaves_the_others_served(server, of):
    before, stop, errors = scraped(server), threading.Event(), []

    def flood():
        while not stop.is_set():
            try:
                list(of(ONE).generate([5, 6], max_tokens=50, ignore_eos=True, timeout=60))
            except ServerError as error:
                errors.append(error)

    of(ONE)
    threads = [threading.Thread(target=flood) for _ in range(4 * MOST)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: errors)
        for _ in range(10):
            ended(of(TWO))
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert {error.code for error in errors} == {"RESOURCE_EXHAUSTED"}
    assert all(error.retry_s > 0 and f"each tenant is allowed {MOST}" in error.message for error in errors)

    def grown():
        after = scraped(server)
        changes = {key.removeprefix("medha_tenant_"): value - before.get(key, 0) for key, value in after.items()}
        return {key: value for key, value in changes.items() if "tenant=" in key and value}

    accepted = grown()['requests_accepted_total{tenant="one"}']
    wait_until(  # a call is counted a moment after its last event
        lambda: (
            grown()
            == {
                'requests_accepted_total{tenant="one"}': accepted,
                'prompt_tokens_total{tenant="one"}': 2 * accepted,
                'generation_tokens_total{tenant="one"}': 50 * accepted,
                'requests_refused_total{reason="RESOURCE_EXHAUSTED",tenant="one"}': len(errors),
                'requests_accepted_total{tenant="two"}': 10,
                'prompt_tokens_total{tenant="two"}': 30,
                'generation_tokens_total{tenant="two"}': 10,
            }
        )
    )


def test_tokens_that_wait_are_limited_for_each_tenant(server, of):
    streams = [begun(of(ONE)) for _ in range(SLOTS)]
    wait_until(lambda: of(ONE).load().running == SLOTS)
    streams.append(begun(of(ONE), [5] * 500))
    error = refusal(of(ONE).generate([5] * 200))
    assert error.code == "RESOURCE_EXHAUSTED" and error.retry_s > 0
    assert "your requests with 500 tokens wait and this one has 200; each tenant is allowed 600" in error.message
    streams.append(begun(of(TWO), [5] * 200))
    found = scraped(server)
    gauges = ("requests_running", "requests_waiting", "tokens_waiting")
    for tenant, wanted in {"one": [SLOTS, 1, 500], "two": [0, 1, 200], "": [0, 0, 0]}.items():
        assert [found[f'medha_tenant_num_{name}{{tenant="{tenant}"}}'] for name in gauges] == wanted
    assert of(PLAIN).load().waiting_tokens == 700, "the load is the server's"
    for stream in streams[:SLOTS]:
        stream.close()
    assert isinstance(next(streams[-1]), Delta)
    for stream in streams:
        stream.close()


def test_the_log_has_the_tenant_and_no_token(server, of):
    for token, name in ((ONE, "one"), (PLAIN, "plain")):
        ended(of(token), request_id=f"of-{name}")
        wait_until(lambda name=name: logged(server, request_id=f"of-{name}"))
    assert logged(server, request_id="of-one", tenant="one", method="Generate")
    assert "tenant" not in logged(server, request_id="of-plain")[0]
    assert not any(token in server.errors for token in (ONE, SAME, TWO, PLAIN, LATER))


def test_names_come_and_go_while_it_runs(server, of):
    """The last test of this server: its file is another one afterwards."""

    def replaced(content, wanted):
        said = server.errors.count(wanted)
        server.file.write_text(content)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.errors.count(wanted) > said)

    running, of_two = begun(of(ONE), request_id="long"), begun(of(TWO), request_id="long")
    replaced(f"one {ONE}\nbad name {LATER}\n", f"stay in use: {server.file}, line 2: holds 3 words")
    ended(of(TWO))
    replaced(f"one {ONE}\nlater {LATER}\n", "tokens of")
    ended(of(LATER), request_id="long")
    with pytest.raises(ServerError) as raised:
        of(TWO).load()
    assert raised.value.code == "UNAUTHENTICATED"
    assert isinstance(next(running), Delta) and isinstance(next(of_two), Delta), "open streams go on"
    names = {key.split('tenant="')[1].split('"')[0] for key in scraped(server) if "tenant=" in key}
    assert names == {"one", "later"}
    assert of(ONE).abort("long") and not of(LATER).abort("long")
    of_two.close()
    assert LATER not in server.errors
