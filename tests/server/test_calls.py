"""What is counted and logged of calls, whatever becomes of them."""

import json
import threading
import time
import urllib.request
from contextlib import suppress

import grpc
import pytest

from medha_jax.client import Accepted, Client, Delta, ServerError
from medha_jax.client.connection import SERVICE
from medha_jax.engine import EngineService
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server import calls, prompt_parts
from medha_jax.server.settings import ServerSettings
from medha_jax.text import Tokenizer
from tests.server.embedded import running
from tests.server.processes import idle, refusal, wait_until

ENCODING_S = 0.4
LOOP, SHORT, LONG = "loop", "short-work", "long-work"  # where work runs


@pytest.fixture(scope="module")
def large():
    """The address of a server with a large context, in this process."""
    with running(ServerSettings(port=0, access_log="off"), context=65536) as (lines, _):
        yield next(line for line in lines if line.startswith("serving")).split()[-1]


@pytest.fixture
def places(monkeypatch):
    """Where work of each name ran: in which kind of thread."""
    found = {}

    def watch(owner, name):
        work = getattr(owner, name)

        def watched(*arguments, **named):
            thread = threading.current_thread().name
            kind = next((kind for kind in (SHORT, LONG) if thread.startswith(kind)), LOOP)
            found.setdefault(name, []).append(kind)
            return work(*arguments, **named)

        monkeypatch.setattr(owner, name, watched)

    watch(calls, "parse")
    watch(prompt_parts, "_read")
    watch(Tokenizer, "encode")
    watch(EngineService, "submit")
    watch(EngineService, "extend")
    return found


@pytest.mark.parametrize(
    "size, parsing, encoding",
    [(100, LOOP, LOOP), (600, LOOP, SHORT), (16_000, LOOP, SHORT), (20_000, SHORT, SHORT), (70_000, LONG, LONG)],
)
@pytest.mark.parametrize("method", ["generate", "tokenize"])
def test_a_text_is_tokenized_in_a_thread(large, places, method, size, parsing, encoding):
    with Client(large) as client:
        if method == "tokenize":
            assert client.tokenize("a " * (size // 2))
        else:
            list(client.generate("a " * (size // 2), max_tokens=1, ignore_eos=True))
    assert places["parse"] == [parsing] and places["encode"] == [encoding]


def test_the_ids_of_a_large_part_are_read_and_checked_in_a_thread(large, places):
    parts = [pb.GeneratePart(start=pb.GenerateStart(prompt_tokens=50_100))]
    parts[0].start.settings.sampling.max_tokens = 1
    for size in (100, 20_000, 30_000):
        parts.append(pb.GeneratePart(token_ids=pb.PromptIds(ids=[300] * size)))
    with grpc.insecure_channel(large) as channel:
        call = channel.stream_stream(
            f"{SERVICE}GenerateStream", pb.GeneratePart.SerializeToString, pb.GenerateEvent.FromString
        )
        *_, last = call(iter(parts))
    assert last.WhichOneof("event") == "finished"
    assert places["_read"] == [LOOP, LOOP, SHORT, SHORT]  # 2 bytes an id
    assert places["submit"] == [LOOP]
    assert places["extend"] == [LONG, LONG, LOOP]  # 4 bytes an id; the last one completes the prompt


def test_messages_of_all_calls_are_parsed_in_a_thread_if_they_are_large(large, places):
    unknown = pb.TokenizeRequest(text="a" * 100_000).SerializeToString()  # another message's field
    with grpc.insecure_channel(large) as channel:
        for method in ("GetModelInfo", "GetLoad", "Abort"):
            channel.unary_unary(f"{SERVICE}{method}")(unknown)
    assert places["parse"] == [LONG] * 3


def test_a_short_text_does_not_wait_for_long_ones(large, monkeypatch):
    encode, began, go_on = Tokenizer.encode, threading.Semaphore(0), threading.Event()

    def held(self, text, add_special_tokens=True):
        if len(text) > calls.SHORT:
            began.release()
            assert go_on.wait(60)
        return encode(self, text, add_special_tokens)

    monkeypatch.setattr(Tokenizer, "encode", held)
    with Client(large) as client:
        long = [threading.Thread(target=client.tokenize, args=("a " * 40_000,)) for _ in range(4)]
        for thread in long:
            thread.start()
        try:
            for _ in range(2):
                assert began.acquire(timeout=60)
            assert client.tokenize("a " * 1_000, timeout=60)
            assert not go_on.is_set() and all(thread.is_alive() for thread in long)
        finally:
            go_on.set()
            for thread in long:
                thread.join(60)


def scraped(server):
    """The server's metrics, by name and labels."""
    url = next(line for line in server.errors.splitlines() if line.startswith("metrics on")).split()[-1]
    text = urllib.request.urlopen(url, timeout=10).read().decode()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}


def total(metrics, name):
    return sum(value for key, value in metrics.items() if key.split("{")[0] == f"medha_{name}")


def adds_up(metrics):
    ended = total(metrics, "request_success_total") + total(metrics, "request_failure_total")
    open_now = total(metrics, "num_requests_running") + total(metrics, "num_requests_waiting")
    return total(metrics, "requests_accepted_total") == ended + open_now


def changes(before, after):
    """What grew of the counters of requests and of first tokens, by name and labels."""
    names = ("requests_accepted", "request_success", "request_failure", "requests_refused")
    told = {
        key: value - before.get(key, 0)
        for key, value in after.items()
        if key.startswith((*(f"medha_{name}_total" for name in names), "medha_time_to_first_token_seconds_count"))
    }
    return {key.removeprefix("medha_"): value for key, value in told.items() if value}


def test_a_cancelled_stream_is_counted_at_once_and_is_no_refusal(server, client):
    wait_until(lambda: idle(client))
    before = scraped(server)
    stream = client.generate([5, 6, 7], max_tokens=400, ignore_eos=True)
    assert isinstance(next(stream), Accepted) and isinstance(next(stream), Delta)
    stream.close()
    wait_until(lambda: total(scraped(server), "request_failure_total") > total(before, "request_failure_total"), 5)
    assert changes(before, scraped(server)) == {
        "requests_accepted_total": 1,
        'request_failure_total{reason="cancelled"}': 1,
        "time_to_first_token_seconds_count": 1,
    }
    assert adds_up(scraped(server))


def test_a_refusal_was_never_accepted_and_only_requests_are_refused(server, client):
    before = scraped(server)
    assert refusal(client.generate([5], top_p=2.0)).code == "INVALID_ARGUMENT"
    with suppress(ServerError):
        client.tokenize("")
    with suppress(ServerError):
        client.abort("")
    wait_until(lambda: changes(before, scraped(server)))
    assert changes(before, scraped(server)) == {'requests_refused_total{reason="INVALID_ARGUMENT"}': 1}


def test_calls_that_end_at_once_are_accepted_or_refused(server, client):
    calls, before = 40, scraped(server)
    with grpc.insecure_channel(server.address) as channel:
        generate = channel.unary_stream(
            f"{SERVICE}Generate", pb.GenerateRequest.SerializeToString, pb.GenerateEvent.FromString
        )
        request = pb.GenerateRequest(token_ids=pb.PromptIds(ids=[5] * 100))
        request.settings.sampling.max_tokens = 50
        for number in range(calls):
            call = generate(request, timeout=0.2 * number / calls)
            with suppress(grpc.RpcError):
                list(call)
            assert adds_up(scraped(server))
    wait_until(lambda: idle(client))
    found = changes(before, scraped(server))
    came = found.get("requests_accepted_total", 0) + sum(
        value for key, value in found.items() if key.startswith("requests_refused_total")
    )
    assert 0 < found.get("requests_accepted_total", 0) <= came <= calls, "some never reached the server"
    assert adds_up(scraped(server))


def test_a_finished_stream_is_logged_as_ok(server, client):
    for number in range(60):
        *_, _last = client.generate([5, 6], max_tokens=1, ignore_eos=True, request_id=f"quick-{number}")
    with Client(server.address) as other:
        stream = other.generate([5, 6], max_tokens=1, ignore_eos=True, request_id="quick-left")
        next(stream)
        wait_until(lambda: idle(client))
    wait_until(lambda: server.errors.count("request_id=quick-") == 61)
    lines = [line for line in server.errors.splitlines() if "request_id=quick-" in line and "left" not in line]
    assert len(lines) == 60 and all("code=OK" in line for line in lines), lines


def test_the_first_token_is_late_by_the_time_of_tokenizing(monkeypatch):
    encode = Tokenizer.encode

    def slow(self, text, add_special_tokens=True):
        time.sleep(ENCODING_S)
        return encode(self, text, add_special_tokens)

    with running(ServerSettings(port=0, access_log="json")) as (lines, _):
        address = next(line for line in lines if line.startswith("serving")).split()[-1]
        monkeypatch.setattr(Tokenizer, "encode", slow)
        with Client(address) as client:
            list(client.generate("the quick", max_tokens=2, ignore_eos=True))
            stream = client.generate("the quick", max_tokens=400, ignore_eos=True)
            assert isinstance(next(stream), Accepted) and isinstance(next(stream), Delta)
            stream.close()
            wait_until(lambda: len([line for line in lines if '"Generate"' in line]) == 2)
    records = [json.loads(line) for line in lines if '"Generate"' in line]
    for record in records:
        assert 1000 * ENCODING_S <= record["ttft_ms"] <= record["e2e_ms"], record
        assert record["queue_ms"] >= 1000 * ENCODING_S and "accepted" not in record
    assert [record["code"] for record in records] == ["OK", "CANCELLED"]
