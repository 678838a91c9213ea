"""Requests that end early, are read slowly or drained: what becomes of them, and that nothing is left."""

import json
import os
import signal
import threading
import time
import tracemalloc
from contextlib import ExitStack, contextmanager

import pytest

from medha_jax.client import Client
from medha_jax.server.http import reply
from medha_jax.server.settings import Limits, ServerSettings
from tests.server.embedded import running
from tests.server.http.raw import connection, exchanged, post
from tests.server.processes import SIMULATED, ServerProcess, idle, wait_until

LONG = {"prompt": "a", "max_tokens": 100_000, "ignore_eos": True}
STREAM = LONG | {"stream": True}
CONTEXT, FOREVER = 2**17, 10_000.0  # of an embedded server; tokens, seconds


@contextmanager
def served(context=CONTEXT, drain_seconds=0.5, **limits):
    """A server's lines, its loader, its URL, and a client over gRPC. Only the stated limits can end a request."""
    unlimited = {"write_seconds": FOREVER, "unread_bytes": 2**40, "unread_total_bytes": 2**40}
    stated = Limits(**unlimited | limits)
    given = ServerSettings(port=0, http_port=0, metrics_port=0, drain_seconds=drain_seconds, limits=stated)
    with running(given, context) as (lines, loader):
        (line,) = (line for line in lines if line.startswith("OpenAI API on "))
        with Client("127.0.0.1:" + lines[-1].rpartition(":")[2]) as client:
            yield lines, loader, line.split()[-1].removesuffix("/v1"), client


@pytest.fixture
def embedded_server(kept):
    yield kept
    wait_until(lambda: idle(kept[-1]), 60)


@pytest.fixture(scope="module")
def kept():
    with served() as given:
        yield given


def logged(lines, **values):
    """Whether a line of the access log has these values: the call's coroutine is over."""
    return any(all(f"{name}={value}" in line for name, value in values.items()) for line in lines)


def events(wire):
    """What a stream says: comments as text, data as JSON, the last one as it is."""
    text = b"".join(wire.chunks()).decode()
    parts = [part for part in text.split("\n\n") if part]
    assert parts[-1] == "data: [DONE]"
    return [part if part[0] == ":" else json.loads(part.removeprefix("data: ")) for part in parts[:-1]]


@pytest.mark.parametrize("stated", [STREAM, LONG, STREAM | {"prompt": ["a", "b"]}])
def test_who_closes_the_connection_ends_the_request(embedded_server, stated):
    lines, _, url, client = embedded_server
    name = f"gone-{stated.get('stream', False)}-{len(stated['prompt'])}"
    with connection(url) as wire:
        wire.send(post(stated | {"request_id": name}))
        wait_until(lambda: client.load().running == (2 if isinstance(stated["prompt"], list) else 1))
    wait_until(lambda: logged(lines, request_id=name, code="CANCELLED"), 30)
    wait_until(lambda: idle(client), 30)
    assert not any("Traceback" in line for line in lines)


def test_a_body_is_let_go_once_the_engine_has_its_prompts():
    """A stream may run for hours; `Limits.receiving_bytes` bounds the bodies of all only if none is kept so long."""
    body, streams = post(json.dumps(STREAM).encode() + b" " * 2**20), 8
    with served() as (*_, url, _), ExitStack() as open_ones:
        tracemalloc.start()
        open_ones.callback(tracemalloc.stop)
        for _ in range(streams):
            wire = open_ones.enter_context(connection(url))
            wire.send(body)
            assert wire.head() == 200
        assert tracemalloc.get_traced_memory()[0] < 2 * 2**20  # eight bodies are 8 MiB


def test_a_deadline_before_the_head_is_a_status(embedded_server):
    lines, _, url, client = embedded_server
    with connection(url) as one, connection(url) as other:
        for wire in (one, other):  # the slots are taken
            wire.send(post(STREAM | {"n": 2}))
            assert wire.head() == 200
        answer = exchanged(url, post(LONG | {"request_id": "waits"}, headers=["x-request-timeout-ms: 50"]))
        assert answer.status == 504 and answer.error["type"] == "timeout_error"
        assert "the 50 ms of the request have passed" in answer.error["message"]
        assert answer.headers["x-should-retry"] == "false"
    wait_until(lambda: idle(client), 30)
    assert logged(lines, request_id="waits", code="DEADLINE_EXCEEDED")


def test_a_deadline_within_a_stream_is_its_last_event(embedded_server):
    _, _, url, client = embedded_server
    with connection(url) as wire:
        wire.send(post(STREAM, headers=["x-request-timeout-ms: 300"]))
        assert wire.head() == 200
        *told, last = events(wire)
    assert told and last["error"]["type"] == "timeout_error" and "300 ms" in last["error"]["message"]
    wait_until(lambda: idle(client), 30)


def test_deadlines_and_objectives_reach_the_engine(embedded_server, monkeypatch):
    _, loader, url, _ = embedded_server
    found = []
    submit = loader.service.submit

    def seen(request, arrival):
        found.append(request)
        return submit(request, arrival)

    monkeypatch.setattr(loader.service, "submit", seen)
    headers = ["x-slo-ttft-ms: 250", "x-slo-tpot-ms: 12.5", "x-request-timeout-ms: 60000"]
    stated = {"prompt": [5, 6], "max_tokens": 2, "on_deadline": "drop", "priority": 1, "cache_salt": "own"}
    assert exchanged(url, post(stated, headers=headers)).status == 200
    assert exchanged(url, post({"prompt": [5, 6], "max_tokens": 2})).status == 200
    first, second = found
    assert (first.slo.ttft_s, first.slo.tpot_s) == (0.25, 0.0125)
    assert first.on_deadline == "drop" and (first.priority, first.cache_salt) == (1, "own")
    assert first.deadline_s is not None and list(first.prompt_ids) == [5, 6]
    assert (second.slo.ttft_s, second.slo.tpot_s, second.deadline_s) == (None, None, None)
    assert (second.on_deadline, second.priority, second.cache_salt) == ("continue", 0, "")


def test_comments_tell_how_far_a_prompt_is_and_that_a_stream_lives(embedded_server, monkeypatch):
    _, _, url, client = embedded_server
    monkeypatch.setattr(reply, "KEEP_ALIVE_SECONDS", 0.05)
    with connection(url) as holding, connection(url) as wire:
        holding.send(post(STREAM | {"n": 4}))  # all slots
        assert holding.head() == 200
        wire.send(post(STREAM | {"prompt": [5] * 100_000, "max_tokens": 2}))
        assert wire.head() == 200
        said = b""
        chunks = wire.chunks()
        while b": the stream lives\n\n" not in said:
            said += next(chunks)
        holding.socket.close()
        holding.file.close()
        rest = (said + b"".join(chunks)).decode()
    assert " of 100000 prompt tokens are computed\n\n" in rest and rest.endswith("data: [DONE]\n\n")
    data = [json.loads(part[6:]) for part in rest.split("\n\n") if part.startswith("data: {")]
    assert sum(bool(one["choices"]) for one in data) and data[-1]["choices"][0]["finish_reason"] == "length"
    wait_until(lambda: idle(client), 30)


MEGABYTES = {"prompt": ["é" * 50_000] * 8, "n": 4, "echo": True}  # an answer that is more than any socket takes


def large(**stated):
    return post(json.dumps(MEGABYTES | stated, ensure_ascii=False).encode())


def test_who_leaves_too_much_unread_ends_and_others_do_not_notice():
    with served(unread_bytes=65536) as (lines, _, url, client), connection(url, buffer=4096) as wire:
        wire.send(large(max_tokens=1000, ignore_eos=True, stream=True))
        assert wire.head() == 200
        wait_until(lambda: any("allowed are 65,536" in line for line in lines), 120)
        wait_until(lambda: idle(client), 30)
        answer = exchanged(url, post(LONG | {"max_tokens": 1000}))
        assert answer.json["usage"]["completion_tokens"] == 1000


@pytest.mark.parametrize("streamed", [True, False])
def test_a_write_that_stands_still_ends_its_connection(streamed):
    """A whole answer is no stream any more when it is written, but it is held for as long."""
    with served(write_seconds=0.3) as (lines, _, url, client):
        assert idle(client)  # its connection is open
        before = len(os.listdir("/proc/self/fd"))
        with connection(url, buffer=4096) as wire:
            wire.send(large(max_tokens=2, stream=streamed))
            assert wire.head() == 200
            if streamed:
                wait_until(lambda: any("a write stood still for 0.3 s" in line for line in lines), 120)
            wait_until(lambda: idle(client), 30)
            wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1, 60)  # the client's is left
            assert not wire.closed().endswith(b"[DONE]\n\n\r\n0\r\n\r\n")


def test_waiting_for_another_prompt_of_the_request_is_no_write(monkeypatch):
    """The first prompt's events wait for the second prompt, which takes long; the client is not told to read faster."""
    with served(write_seconds=0.1) as (_, loader, url, _):
        submit, first = loader.service.submit, threading.Event()

        def slow(request, arrival):
            if first.is_set():
                time.sleep(1.0)
            first.set()
            return submit(request, arrival)

        monkeypatch.setattr(loader.service, "submit", slow)
        ids = [1] * 5000  # handed over in a thread
        answer = exchanged(url, post({"prompt": [ids, ids], "max_tokens": 2, "ignore_eos": True, "stream": True}))
        assert (answer.status, answer.body.count(b'"finish_reason":"length"')) == (200, 2)


def test_a_drain_lets_a_stream_finish_and_takes_no_more():
    options = ["--tick-ms", 2, "--http-port", 0, "--metrics-port", 0, "--access-log", "json", "--max-output", 4096]
    with ServerProcess(*SIMULATED, *options) as server:
        with connection(server.url) as wire:
            secret = "a prompt that nobody else reads"
            wire.send(post({"prompt": secret, "max_tokens": 1500, "ignore_eos": True, "stream": True}))
            assert wire.head() == 200
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "stopping: 1 streams" in server.errors)
            answer = exchanged(server.url, post({"prompt": "a"}))
            assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1
            assert answer.headers["x-should-retry"] == "true" and "no requests are taken" in answer.error["message"]
            assert exchanged(server.url, post(b"", "/health", method="GET")).status == 503
            *_, last = events(wire)
            assert last["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(60) == 0
        assert "Traceback" not in server.errors and "nobody else" not in server.errors
        lines = [json.loads(line) for line in server.errors.splitlines() if line.startswith("{")]
        (line,) = (line for line in lines if line["code"] == "OK")
        assert (line["method"], line["output_tokens"], line["reason"]) == ("Completions", 1500, "length")
        (line,) = (line for line in lines if line["code"] == "UNAVAILABLE")
        assert line["method"] == "Completions"
