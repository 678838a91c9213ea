"""From the engine's thread to the writers: nothing lost, deltas joined, early events kept."""

import asyncio

import pytest

from medha_jax.engine import Failed, NewTokens, Prefilled, Queued
from medha_jax.server.refusal import Refusal
from medha_jax.server.streams import MOST_JOINED, Streams


def delta(token):
    return NewTokens((token,), chr(97 + token % 26))


def run(coroutine):
    return asyncio.run(coroutine)


def test_deltas_that_wait_are_joined_up_to_a_bound_and_in_order():
    async def check():
        streams = Streams(4)
        stream = streams.open("a")
        streams.expect()
        streams.bind(stream, 7)
        streams.listen([(7, Queued(0, 0.1)), (7, Prefilled(1, 2)), (7, delta(0))])
        streams.listen(
            [(7, delta(n)) for n in range(1, 2 * MOST_JOINED)] + [(7, Failed("internal", "x")), (8, delta(9))]
        )
        await asyncio.sleep(0)
        assert await stream.take() == Queued(0, 0.1)
        first, second = await stream.take(), await stream.take()
        assert len(first) == len(second) == MOST_JOINED
        assert [token for event in first + second for token in event.token_ids] == list(range(2 * MOST_JOINED))
        assert await stream.take() == Failed("internal", "x")

    run(check())


def test_events_that_come_before_the_number_are_kept():
    async def check():
        streams = Streams(4)
        stream = streams.open("a")
        streams.expect()
        streams.listen([(3, delta(1)), (4, delta(2))])
        await asyncio.sleep(0)
        streams.bind(stream, 3)
        assert await stream.take() == [delta(1)]
        streams.expect()
        other = streams.open("b")
        streams.bind(other, 4)  # what came of 4 before belonged to nobody
        streams.listen([(4, delta(5))])
        assert await other.take() == [delta(5)]

    run(check())


def test_streams_are_counted_and_ids_are_taken_once():
    async def check():
        streams = Streams(2)
        first = streams.open("a")
        with pytest.raises(Refusal, match="is running"):
            streams.open("a")
        streams.open("b")
        with pytest.raises(Refusal, match="allowed are 2") as raised:
            streams.open("c")
        assert raised.value.retry_s
        closed = asyncio.create_task(streams.closed())
        streams.end_all(Refusal(None, "over"))
        assert isinstance(await first.take(), Refusal)
        streams.close(first)
        await asyncio.sleep(0)
        assert not closed.done() and streams.find("a") is None
        streams.close(streams.find("b"))
        await asyncio.wait_for(closed, 1)

    run(check())
