"""Several outputs of one request over a real connection: told apart, added up, and ended together."""

import asyncio

import pytest

from medha_jax.client import Accepted, AsyncClient, Client, Delta, Finished, Usage
from tests.server.processes import idle, refusal, wait_until
from tests.server.test_calls import adds_up, changes, scraped, total

PROMPT = [7 + n % 50 for n in range(70)]
SAMPLED = dict(temperature=1.0, max_tokens=12, ignore_eos=True)


def tokens(events, index=0):
    return [token for one in events if isinstance(one, Delta) and one.index == index for token in one.token_ids]


def endless(client, **settings):
    """A stream of three outputs that all have begun."""
    stream = client.generate([5, 6, 7], n=3, max_tokens=400, ignore_eos=True, **settings)
    begun = set()
    while begun != {0, 1, 2}:
        event = next(stream)
        begun |= {event.index} if isinstance(event, Delta) else set()
    return stream


def test_outputs_are_told_apart_and_each_can_be_had_alone(server, client):
    wait_until(lambda: idle(client))
    before = scraped(server)
    asked = SAMPLED | dict(seed=11, logprobs=1, request_id="three", cache_salt="three")
    first, *events = client.generate(PROMPT, n=3, **asked)
    assert isinstance(first, Accepted) and first.seed == 11
    assert all(isinstance(event, Delta | Finished) for event in events) and isinstance(events[-1], Finished)
    ends = {event.index: event for event in events if isinstance(event, Finished)}
    assert set(ends) == {0, 1, 2} and sum(isinstance(event, Finished) for event in events) == 3
    assert [end.usage for _, end in sorted(ends.items())] == [Usage(70, 0, 12), Usage(70, 64, 12), Usage(70, 64, 12)]
    assert [event.total for event in events if isinstance(event, Finished)] == [None, None, Usage(70, 0, 36)]
    wait_until(lambda: "request_id=three " in server.errors)
    (line,) = (line for line in server.errors.splitlines() if "request_id=three " in line)
    assert "prompt_tokens=70 cached_tokens=0 output_tokens=36" in line and "code=OK reason=length" in line
    wait_until(lambda: adds_up(scraped(server)))
    after = scraped(server)
    assert changes(before, after) == {
        "requests_accepted_total": 1,
        'request_success_total{finished_reason="length"}': 1,
        "time_to_first_token_seconds_count": 1,
    }
    grown = {
        name: total(after, name) - total(before, name) for name in ("generation_tokens_total", "prompt_tokens_total")
    }
    assert grown == {"generation_tokens_total": 36, "prompt_tokens_total": 70}
    for index in range(3):
        alone = list(client.generate(PROMPT, **SAMPLED, seed=11 + index, logprobs=1))
        assert tokens(events, index) == tokens(alone)
        entries = [
            one for event in events if isinstance(event, Delta) and event.index == index for one in event.logprobs
        ]
        assert [entry.token_id for entry in entries] == tokens(alone)
        assert alone[-1].index == 0 and alone[-1].total == alone[-1].usage
    assert len({tuple(tokens(events, index)) for index in range(3)}) == 3


def test_stop_texts_end_one_output_and_greedy_outputs_are_equal(client):
    *events, _ = client.generate(PROMPT, n=2, temperature=0, max_tokens=9)
    assert tokens(events, 0) == tokens(events, 1)
    free = list(client.generate(PROMPT, n=3, seed=2, **SAMPLED))
    stop = tokens(free, 1)[4]
    ends = {}
    for event in client.generate(PROMPT, n=3, seed=2, stop_token_ids=[stop], **SAMPLED):
        if isinstance(event, Finished):
            ends[event.index] = event
    for index, end in ends.items():
        alone = tokens(free, index)
        assert end.usage.output_tokens == (alone.index(stop) + 1 if stop in alone else 12)
        assert end.reason == ("stop" if stop in alone else "length")
    assert ends[1].reason == "stop"


@pytest.mark.parametrize("how", ["abort", "close", "drop", "deadline"])
def test_all_outputs_end_together(how, server, client):
    wait_until(lambda: idle(client))
    before = scraped(server)
    if how == "abort":
        stream = endless(client, request_id="several")
        assert client.load().used_slots == 3 and client.load().running == 1
        assert client.abort("several")
        assert refusal(stream).code == "CANCELLED"
    elif how == "close":
        with Client(server.address) as other:
            endless(other)
    elif how == "drop":
        endless(client).close()
    else:
        assert refusal(client.generate([5, 6], n=8, max_tokens=400, ignore_eos=True, timeout=0.05)).code == (
            "DEADLINE_EXCEEDED"
        )
    wait_until(lambda: idle(client) and client.load().used_slots == 0)
    wait_until(lambda: adds_up(scraped(server)))
    assert changes(before, scraped(server)).get('request_failure_total{reason="cancelled"}') == 1


@pytest.mark.parametrize("n", [9, 2**32 - 1])
def test_more_outputs_than_allowed_are_refused(n, server, client, simulated):
    error = refusal(client.generate([5], n=n))
    assert (error.code, error.message) == ("INVALID_ARGUMENT", f"n is {n}; allowed are 1 to 8 outputs")
    with Client(simulated.address) as few:
        error = refusal(few.generate([5], n=5))
        assert error.message == "n is 5; allowed are 1 to 4 outputs, because the server has 4 slots"
        *_, last = few.generate([5], n=4, max_tokens=2, ignore_eos=True)
        assert last.total == Usage(1, 0, 8)
        assert idle(few)


def test_asyncio(simulated):
    async def everything():
        async with AsyncClient(simulated.address) as client:
            events = [event async for event in client.generate([5, 6], n=3, max_tokens=4, ignore_eos=True)]
            assert [len(tokens(events, index)) for index in range(3)] == [4, 4, 4]
            assert events[-1].total == Usage(2, 0, 12)
            # whole, although one output's prompt of this size would go in parts
            *_, last = [event async for event in client.generate([5] * 7000, n=2, max_tokens=1, ignore_eos=True)]
            assert last.total.output_tokens == 2

    asyncio.run(everything())
