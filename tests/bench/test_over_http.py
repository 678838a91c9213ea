"""Against a server that was written from the API's description, on bare sockets."""

import asyncio
import json

import numpy as np
import pytest

from benchmarks.completions_server import FAULTS
from medha_jax.bench.backend import BackendError, RequestFailedError, Wanted
from medha_jax.bench.over_http import OpenAiBackend, api_base
from tests.server.processes import wait_until

IDS = np.arange(5, dtype=np.int32)


def send(url, prompt=IDS, tokens=6, heard=lambda tokens: None, **options):
    """One request: what it heard, and the reply."""

    async def run():
        backend = OpenAiBackend(url, **options)
        messages, order = [], []

        def note(count):
            order.append("heard")
            messages.append(count)
            heard(count)

        try:
            await backend.facts()
            prepared = await backend.prepare(prompt, Wanted(tokens))
            reply = await asyncio.wait_for(backend.send(prepared, lambda: order.append("taken"), note), 10)
            return messages, order, reply
        finally:
            await backend.close()

    return asyncio.run(run())


def test_a_stream_is_heard_message_by_message_and_counted_by_the_usage(completions):
    messages, order, reply = send(completions.url())
    assert messages == [1] * 6 and order == ["taken", *["heard"] * 6]
    assert (reply.counted, reply.prompt_tokens, reply.output_tokens, reply.cached_tokens) == ("usage", 5, 6, 1)


def test_what_is_sent_is_what_the_api_says(completions):
    send(completions.url(), token="a-secret-of-some-length", more={"min_tokens": 3}, temperature=0.5)
    assert completions.server.seen[-1] == {
        "model": "simulated",
        "prompt": [0, 1, 2, 3, 4],
        "max_tokens": 6,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "min_tokens": 3,
    }
    assert completions.server.headers[-1]["authorization"] == "Bearer a-secret-of-some-length"
    send(completions.url(), prompt="a text", ignore_eos=False)
    assert completions.server.seen[-1]["prompt"] == "a text" and "ignore_eos" not in completions.server.seen[-1]
    assert "authorization" not in completions.server.headers[-1]


def test_long_prompts_are_sent_whole(completions):
    ids = np.arange(20_000, dtype=np.int32)
    send(completions.url(), prompt=ids, tokens=1)
    assert completions.server.seen[-1]["prompt"] == ids.tolist()


FORMS = (
    *("crlf", "dribble", "last-empty", "last-silent", "two-a-chunk", "no-usage", "pings", "no-done", "done-cut"),
    *("usage-alone", "usage-null-choices", "usage-first", "usage-always", "usage-both"),
)


@pytest.mark.parametrize("fault", FORMS)
def test_streams_of_other_forms_are_understood(completions, fault):
    messages, _, reply = send(completions.url(fault))
    assert fault in FAULTS and len(messages) == (3 if fault == "two-a-chunk" else 6)
    untold = fault in ("no-usage", "usage-first")  # the first usage cannot know the output
    assert (reply.counted, reply.output_tokens) == (("chunks", None) if untold else ("usage", 6))
    assert reply.prompt_tokens == (None if fault == "no-usage" else 5)


@pytest.mark.parametrize(
    "fault, message",
    [
        ("status-429", r"HTTP 429: too many requests wait$"),
        ("status-500", r"HTTP 500: <html> <body>Internal Server Error</body> </html>$"),
        ("error", r"error in the stream: the engine died$"),
        ("truncated", r"the stream ended after 3 messages without a finish reason and without \[DONE\]"),
        ("cut-event", r'an event is not JSON: {"choices": \[{"ind$'),
        ("bare-error", r"error in the stream: the engine died$"),
        ("abort", r"the server ended the request with the reason abort$"),
        ("reset", r"the connection broke after 3 messages: "),
        ("drop", r"the connection broke before the first message: "),
        ("malformed", r'an event is not JSON: {"choices": \[{"index": 0, "te$'),
        ("list", r"an event is no JSON object: \[1, 2\]"),
        ("choices-a-text", r"the choices of an event are no list of objects: "),
        ("usage-huge", r"the usage has 1,099,511,627,776 completion_tokens; allowed are up to 2,147,483,647$"),
        ("plain", r"the answer is application/json, not text/event-stream"),
    ],
)
def test_every_failure_has_its_reason_in_a_line(completions, fault, message):
    assert fault in FAULTS
    with pytest.raises(RequestFailedError, match=message) as raised:
        send(completions.url(fault))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("messages", [1, 3])
def test_leaving_a_stream_ends_it_in_the_server(completions, messages):
    """The server has more to say, or is silent by then."""

    class EnoughError(Exception):
        pass

    heard = []

    def enough(count):
        heard.append(count)
        if len(heard) == messages:
            raise EnoughError

    with pytest.raises(EnoughError):
        send(completions.url("endless"), heard=enough)
    wait_until(lambda: not completions.server.open, 60)


def test_connections_are_used_again(completions):
    async def run():
        backend = OpenAiBackend(completions.url())
        try:
            await backend.facts()
            prepared = await backend.prepare(IDS, Wanted(2))
            for _ in range(5):
                await backend.send(prepared, lambda: None, lambda tokens: None)
            return sum(map(len, backend._session.connector._conns.values()))
        finally:
            await backend.close()

    assert asyncio.run(run()) == 1


def test_the_model_is_asked_for_unless_it_is_named(completions):
    async def facts(url, model=None):
        backend = OpenAiBackend(url, model=model)
        try:
            return await backend.facts()
        finally:
            await backend.close()

    found = asyncio.run(facts(completions.url()))
    assert (found.model, found.context_tokens, found.vocabulary) == ("simulated", 8192, None)
    assert asyncio.run(facts(completions.url(), "simulated")).context_tokens == 8192
    assert asyncio.run(facts(completions.url("no-models"), "named")).model == "named"
    with pytest.raises(BackendError, match="HTTP 404: there is no such thing; name the model with --served-model"):
        asyncio.run(facts(completions.url("no-models")))
    with pytest.raises(BackendError, match="no answer from http://127.0.0.1:9/v1"):
        asyncio.run(facts("http://127.0.0.1:9", "named"))


def test_addresses():
    assert api_base("http://host:8000") == api_base("http://host:8000/") == "http://host:8000/v1"
    assert api_base("https://host/api/v1/") == api_base("https://host/api/v1/completions") == "https://host/api/v1"
    for wrong in ("host:8000", "ftp://host", "http://", ""):
        with pytest.raises(BackendError, match="is no address of a server"):
            api_base(wrong)


def test_a_priority_is_sent_only_if_it_is_stated(completions):
    async def body(priority):
        backend = OpenAiBackend(completions.url())
        try:
            await backend.facts()
            return json.loads(await backend.prepare(IDS, Wanted(6, priority=priority)))
        finally:
            await backend.close()

    assert asyncio.run(body(-1))["priority"] == -1
    assert "priority" not in asyncio.run(body(0))
