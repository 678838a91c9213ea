"""From the engine's thread to the writers: nothing lost, deltas joined, early events kept, what waits is bounded."""

import asyncio
import tracemalloc

import numpy as np
import pytest
from grpc import StatusCode

from medha_jax.engine import (
    Completed,
    Completion,
    Failed,
    NewTokens,
    PhaseTimings,
    Prefilled,
    PromptScored,
    Queued,
    RequestTotals,
    TokenLogprobs,
)
from medha_jax.plan import PromptScores
from medha_jax.server.refusal import Refusal
from medha_jax.server.settings import LEAST_UNREAD, Limits
from medha_jax.server.streams import MOST_ECHOED, MOST_JOINED, MOST_JOINED_BYTES, Streams
from medha_jax.server.unread import event_bytes
from medha_jax.tenants import TenantCounts


def delta(token):
    return NewTokens((token,), chr(97 + token % 26))


def begun(streams, name, tenant="", beside=0, progress=False):
    """A stream; `beside` calls of the tenant have none any more."""
    others = TenantCounts()
    others.add(tenant, beside)
    return streams.open(tenant, name, others, progress)


def run(coroutine):
    return asyncio.run(coroutine)


def test_deltas_that_wait_are_joined_up_to_a_bound_and_in_order():
    async def check():
        streams = Streams(Limits())
        stream = begun(streams, "a")
        streams.expect()
        streams.bind(stream, 7)
        streams.listen([(7, Queued(0, 0.1, 7)), (7, Prefilled(1, 2)), (7, delta(0))])
        streams.listen(
            [(7, delta(n)) for n in range(1, 2 * MOST_JOINED)] + [(7, Failed("internal", "x")), (8, delta(9))]
        )
        await asyncio.sleep(0)
        assert await stream.take() == Queued(0, 0.1, 7)
        first, second = await stream.take(), await stream.take()
        assert len(first) == len(second) == MOST_JOINED
        assert [token for event in first + second for token in event.token_ids] == list(range(2 * MOST_JOINED))
        assert await stream.take() == Failed("internal", "x")

    run(check())


def test_an_echo_comes_before_the_first_token_in_pieces_and_is_not_unread():
    async def check():
        streams = Streams(Limits())
        (stream,) = opened(streams, "a")
        text = "".join(chr(97 + n % 26) for n in range(2 * MOST_ECHOED + 5))
        stream.echo(text)
        await heard(streams, (0, Queued(0, 0.1, 7)), (0, delta(0)))
        unread = streams.unread
        assert unread == event_bytes(Queued(0, 0.1, 7)) + event_bytes(delta(0))
        assert await stream.take() == Queued(0, 0.1, 7)
        pieces = [await stream.take() for _ in range(3)]
        assert pieces == [[NewTokens((), text[at : at + MOST_ECHOED])] for at in range(0, len(text), MOST_ECHOED)]
        assert await stream.take() == [delta(0)]
        stream.echo(text)
        stream.end(Refusal(StatusCode.UNAVAILABLE, "over"))
        with pytest.raises(Refusal, match="over"):
            await stream.take()

    run(check())


def test_a_request_that_fails_before_its_first_token_has_no_echo():
    async def check():
        streams = Streams(Limits())
        (stream,) = opened(streams, "a")
        stream.echo("text")
        await heard(streams, (0, Failed("internal", "x")))
        assert await stream.take() == Failed("internal", "x")

    run(check())


def test_events_about_the_prompt_come_where_they_are_wanted_and_at_most_one_a_second(monkeypatch):
    async def check():
        now = [100.0]
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0])
        streams = Streams(Limits())
        told, silent = begun(streams, "a", progress=True), begun(streams, "b")
        for number, stream in ((1, told), (2, silent)):
            streams.expect()
            streams.bind(stream, number)
        for step in range(40):  # ten seconds
            now[0] = 100 + step / 4
            streams.listen([(number, Prefilled(step, 41, 9.0)) for number in (1, 2)])
            await asyncio.sleep(0)
        streams.listen([(number, Prefilled(41, 41)) for number in (1, 2)])
        streams.listen([(number, delta(0)) for number in (1, 2)])
        await asyncio.sleep(0)
        assert await silent.take() == [delta(0)]
        found = [await told.take() for _ in range(11)]
        assert found == [*(Prefilled(4 * second, 41) for second in range(10)), [delta(0)]]
        assert found[0].left_s == 9.0

    run(check())


def test_events_that_come_before_the_number_are_kept():
    async def check():
        streams = Streams(Limits())
        stream = begun(streams, "a")
        streams.expect()
        streams.listen([(3, delta(1)), (4, delta(2))])
        await asyncio.sleep(0)
        streams.bind(stream, 3)
        assert await stream.take() == [delta(1)]
        streams.expect()
        other = begun(streams, "b")
        streams.bind(other, 4)  # what came of 4 before belonged to nobody
        streams.listen([(4, delta(5))])
        assert await other.take() == [delta(5)]

    run(check())


def completed(total=None):
    timings = PhaseTimings(0, 1, 1, 0, 1, None)
    return Completed(
        Completion(
            token_ids=(5,), text="", finish_reason="length", matched=None, prompt_tokens=1, logprobs=(),
            timings=timings, chunks=(1,),
        ),
        total,
    )  # fmt: skip


def test_the_outputs_of_a_request_are_told_apart_and_the_deltas_of_each_are_joined():
    async def check():
        streams = Streams(Limits())
        stream, other = begun(streams, "a"), begun(streams, "b")
        streams.expect()
        total = RequestTotals(1, 0, 3, "length", True)
        one = [(number, Queued(0, 0.1, number)) for number in (3, 4, 5)]
        streams.listen([*one, (3, delta(1)), (4, delta(11)), (3, delta(2)), (6, delta(99)), (5, delta(21))])
        streams.listen([(5, completed()), (4, delta(12)), (3, completed()), (4, completed(total))])
        await asyncio.sleep(0)  # all of it comes before the number is known
        streams.bind(stream, 3, 3)
        taken = [(await stream.take(), stream.index) for _ in range(7)]
        assert taken == [
            (Queued(0, 0.1, 3), 0),
            ([delta(1), delta(2)], 0),
            ([delta(11), delta(12)], 1),
            ([delta(21)], 2),
            (completed(), 2),
            (completed(), 0),
            (completed(total), 1),
        ]
        streams.close(stream)
        streams.expect()
        streams.bind(other, 6)
        await heard(streams, (4, delta(13)), (6, delta(100)))  # 4 has no stream any more
        assert await other.take() == [delta(100)]

    run(check())


def test_an_output_that_floods_its_stream_keeps_the_others_in_order():
    async def check():
        streams = Streams(Limits())
        stream = begun(streams, "a")
        streams.expect()
        streams.bind(stream, 0, 2)
        flood = [(0, delta(n)) for n in range(3 * MOST_JOINED)]
        await heard(streams, (1, delta(1000)), *flood, (1, delta(1001)), (1, Failed("internal", "x")))
        got = {0: [], 1: []}
        while not isinstance(item := await stream.take(), Failed):
            got[stream.index] += [token for event in item for token in event.token_ids]
        assert got == {0: list(range(3 * MOST_JOINED)), 1: [1000, 1001]}

    run(check())


def test_streams_are_counted_and_ids_are_taken_once():
    async def check():
        streams = Streams(Limits(max_streams=2))
        first = begun(streams, "a")
        with pytest.raises(Refusal, match="is running"):
            begun(streams, "a")
        with pytest.raises(Refusal, match="allowed are 2"):
            begun(streams, "b", beside=1)
        begun(streams, "b")
        with pytest.raises(Refusal, match="allowed are 2") as raised:
            begun(streams, "c")
        assert raised.value.retry_s
        closed = asyncio.create_task(streams.closed())
        streams.end_all(Refusal(StatusCode.UNAVAILABLE, "over"))
        with pytest.raises(Refusal, match="over"):
            await first.take()
        streams.close(first)
        await asyncio.sleep(0)
        assert not closed.done() and streams.find("", "a") is None
        streams.close(streams.find("", "b"))
        await asyncio.wait_for(closed, 1)

    run(check())


def test_ids_and_limits_are_those_of_a_tenant():
    async def check():
        streams = Streams(Limits(max_streams=5, tenant_streams=2))
        first, second = begun(streams, "a", "one"), begun(streams, "a", "two")
        assert (streams.find("one", "a"), streams.find("two", "a")) == (first, second)
        assert streams.find("", "a") is None
        with pytest.raises(Refusal, match="the id a is running") as raised:
            begun(streams, "a", "one")
        assert raised.value.code is StatusCode.ALREADY_EXISTS
        begun(streams, "b", "one")
        with pytest.raises(Refusal, match="2 streams of yours are open; each tenant is allowed 2") as raised:
            begun(streams, "c", "one")
        assert raised.value.code is StatusCode.RESOURCE_EXHAUSTED and raised.value.retry_s
        with pytest.raises(Refusal, match="each tenant is allowed 2"):
            begun(streams, "b", "two", beside=1)  # a call that nobody reads is one of its tenant's
        begun(streams, "b", "two")
        begun(streams, "a", "three")
        with pytest.raises(Refusal, match="5 streams are open; allowed are 5"):
            begun(streams, "b", "three")
        streams.close(first)
        streams.close(first)
        begun(streams, "a", "one")
        with pytest.raises(Refusal):
            begun(streams, "c", "one")

    run(check())


def with_logprobs(token, top):
    entry = TokenLogprobs(token, -0.5 * token, tuple((token + n, -0.1 * token * n) for n in range(top)))
    return NewTokens((token,), f"text {token}", (entry,))


def opened(streams, *ids):
    """Streams of these ids, with the numbers 0, 1, ..."""
    found = [begun(streams, name) for name in ids]
    for number, stream in enumerate(found):
        streams.expect()
        streams.bind(stream, number)
    return found


async def heard(streams, *events):
    streams.listen(list(events))
    await asyncio.sleep(0)


@pytest.mark.parametrize("top", [None, 0, 5, 20])
def test_bytes_are_counted_as_python_takes_them(top):
    count = 2000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        events = [
            NewTokens((1000 + n,), f"text {n}") if top is None else with_logprobs(1000 + n, top) for n in range(count)
        ]
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    # a release of Python, or what ran before, may share the keys of an object's fields or not: 193 to 245 bytes a delta
    assert 0.75 < sum(map(event_bytes, events)) / taken < 1.5


@pytest.mark.parametrize("top", [0, 20])
def test_bytes_of_a_prompts_log_probabilities_are_those_of_its_arrays(top):
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        ids, values = np.zeros((1024, top + 1), np.int32), np.zeros((1024, top + 1), np.float32)
        event = PromptScored(PromptScores(1, ids[:, 0], values[:, 0], ids[:, 1:], values[:, 1:]))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.75 < event_bytes(event) / taken < 1.5


def test_a_stream_that_leaves_too_much_unread_ends_and_keeps_nothing():
    async def check():
        streams = Streams(Limits(unread_bytes=LEAST_UNREAD))
        slow, other = opened(streams, "a", "b")
        each = event_bytes(with_logprobs(1000, 20))
        fitting = LEAST_UNREAD // each
        await heard(streams, (1, delta(0)), *((0, with_logprobs(1000, 20)) for _ in range(fitting)))
        assert slow.unread == fitting * each <= LEAST_UNREAD
        assert streams.unread == slow.unread + other.unread
        await heard(streams, (0, with_logprobs(1000, 20)))
        await heard(streams, (0, delta(1)))  # of a tick that was under way
        assert slow.unread == 0 and streams.unread == other.unread > 0
        with pytest.raises(Refusal, match=f"{(fitting + 1) * each:,} bytes .* allowed are 65,536") as raised:
            await slow.take()
        assert raised.value.code is StatusCode.RESOURCE_EXHAUSTED
        assert await other.take() == [delta(0)]

    run(check())


def test_of_all_streams_together_the_one_with_the_most_ends():
    async def check():
        streams = Streams(Limits(unread_total_bytes=LEAST_UNREAD))
        most, some, few = opened(streams, "a", "b", "c")
        each = event_bytes(with_logprobs(1000, 20))
        fitting = LEAST_UNREAD // each
        await heard(streams, *((0, with_logprobs(1000, 20)) for _ in range(fitting - 3)))
        await heard(streams, *((1, with_logprobs(1000, 20)) for _ in range(3)))
        assert streams.unread <= LEAST_UNREAD
        await heard(streams, (2, with_logprobs(1000, 20)))
        with pytest.raises(Refusal, match="of all streams are unread; allowed are 65,536; this one had the most"):
            await most.take()
        assert (some.unread, few.unread, streams.unread) == (3 * each, each, 4 * each)

    run(check())


def test_bytes_are_given_back_by_a_write_and_by_a_close():
    async def check():
        streams = Streams(Limits())
        one, other = opened(streams, "a", "b")
        await heard(streams, (0, Queued(0, 0.1, 7)), (0, delta(1)), (0, delta(2)), (1, delta(3)))
        await one.take()
        await one.written(asyncio.sleep(0))
        both = 2 * event_bytes(delta(1))
        assert one.unread == both
        await one.take()
        assert one.unread == both, "what is being written is held"
        await one.written(asyncio.sleep(0))
        assert one.unread == 0 and streams.unread == other.unread > 0
        streams.close(other)
        assert streams.unread == 0

    run(check())


def test_one_message_is_bounded_in_bytes():
    async def check():
        streams = Streams(Limits())
        (stream,) = opened(streams, "a")
        each = event_bytes(with_logprobs(1000, 20))
        most = MOST_JOINED_BYTES // each
        await heard(streams, *((0, with_logprobs(1000, 20)) for _ in range(most + 2)))
        assert [len(await stream.take()), len(await stream.take())] == [most, 2]

    run(check())


def test_a_write_that_stands_still_ends_the_stream():
    async def check():
        streams = Streams(Limits(write_seconds=0.05))
        (stream,) = opened(streams, "a")
        await heard(streams, (0, delta(1)), (0, Queued(0, 0.1, 7)))
        await stream.take()
        with pytest.raises(Refusal, match=r"stood still for 0\.05 s") as raised:
            await asyncio.wait_for(stream.written(asyncio.Event().wait()), 60)
        assert raised.value.code is StatusCode.RESOURCE_EXHAUSTED
        assert streams.unread == 0

    run(check())


@pytest.mark.parametrize("how", ["end", "end_all", "hasten"])
def test_a_write_that_stands_still_holds_up_no_end(how):
    async def check():
        streams = Streams(Limits(write_seconds=1000))
        (stream,) = opened(streams, "a")
        await heard(streams, (0, delta(1)))
        await stream.take()
        writing = asyncio.create_task(stream.written(asyncio.Event().wait()))
        await asyncio.sleep(0)
        over = Refusal(StatusCode.CANCELLED, "over")
        {"end": stream.end, "end_all": streams.end_all, "hasten": lambda _: streams.hasten(0.05)}[how](over)
        with pytest.raises(Refusal, match=r"stood still for 0\.05 s" if how == "hasten" else "over"):
            await asyncio.wait_for(writing, 60)

    run(check())


def test_a_completion_waits_without_what_no_reply_uses():
    async def check():
        streams = Streams(Limits())
        (stream,) = opened(streams, "a")
        timings = PhaseTimings(0, 1, 1, 0, 1, None)
        entries = with_logprobs(1000, 20).logprobs
        whole = Completion(
            token_ids=(5,), text="a", finish_reason="length", matched=None, prompt_tokens=1, logprobs=entries,
            timings=timings, chunks=(1,),
        )  # fmt: skip
        await heard(streams, (0, Completed(whole, None)))
        kept = (await stream.take()).completion
        assert (kept.text, kept.logprobs, kept.token_ids, kept.timings) == ("", (), (5,), timings)

    run(check())
