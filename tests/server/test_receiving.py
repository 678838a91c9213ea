"""Turns of messages: never more than there are, none lost, and silence keeps nobody out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from medha_jax.server import receiving
from medha_jax.server.receiving import NoMessageError, Receiving
from medha_jax.server.refusal import Refusal
from medha_jax.server.settings import Limits

LONG = 60.0


def run(check: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(check, 60))


async def after(seconds: float) -> AsyncIterator[bytes]:
    await asyncio.sleep(seconds)
    yield b"message"


async def received(turns: Receiving, seconds: float = 0.0, within: float = LONG, used: float = 0.0) -> bytes | None:
    async with turns.message(after(seconds), asyncio.get_running_loop().time() + within) as data:
        await asyncio.sleep(used)
        return data


def test_a_message_that_is_late_ends_its_turn() -> None:
    async def check() -> None:
        turns = Receiving(1)
        for _ in range(3):
            with pytest.raises(NoMessageError):
                await received(turns, LONG, within=0.01)
        assert await received(turns) == b"message"

    run(check())


def test_silence_gives_way_to_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "PATIENCE", 0.05)

    async def check() -> None:
        turns = Receiving(2)
        silent = [asyncio.create_task(received(turns, LONG)) for _ in range(2)]
        await asyncio.sleep(0)
        assert await received(turns) == b"message"
        await asyncio.wait(silent, return_when=asyncio.FIRST_COMPLETED)
        assert silent[0].done() and not silent[1].done()
        with pytest.raises(Refusal, match="2 calls wait for their messages"):
            await silent[0]
        waiting = [asyncio.create_task(received(turns, LONG)) for _ in range(4)]  # one turn is free, two may wait
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert waiting[1].done() and not waiting[3].done(), "the oldest that waits for a turn is ended"
        assert await received(turns) == b"message"
        for task in (*silent, *waiting):
            task.cancel()
        await asyncio.gather(*silent, *waiting, return_exceptions=True)
        assert await asyncio.gather(received(turns), received(turns)) == [b"message"] * 2

    run(check())


def test_who_has_its_message_is_never_ended_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "PATIENCE", 0.0)

    async def check() -> None:
        turns = Receiving(1)
        first = asyncio.create_task(received(turns, used=0.1))
        await asyncio.sleep(0.05)
        assert await received(turns) == b"message"
        assert first.done() and await first == b"message", "the next one waited for it"

    run(check())


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_no_turn_is_lost_or_made(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(receiving, "PATIENCE", 0.002)
    draw = random.Random(seed)

    async def check() -> None:
        most, open_now, seen = 3, 0, [0]
        turns = Receiving(most)

        async def counted() -> AsyncIterator[bytes]:
            nonlocal open_now
            open_now += 1
            seen.append(open_now)
            try:
                await asyncio.sleep(draw.choice((0, 0, 0.001, 0.01)))
                yield b"message"
            finally:
                open_now -= 1

        async def one() -> None:
            ends = asyncio.get_running_loop().time() + draw.choice((0.001, 0.005, LONG))
            async with turns.message(counted(), ends):
                await asyncio.sleep(draw.choice((0, 0.001)))

        tasks = []
        for _ in range(200):
            tasks.append(asyncio.create_task(one()))
            if draw.random() < 0.3:
                draw.choice(tasks[-4:]).cancel()  # the newest has not begun, so some are cancelled on any machine
            await asyncio.sleep(draw.choice((0, 0, 0.001)))
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        known = (NoMessageError, Refusal, asyncio.CancelledError, type(None))
        assert all(isinstance(end, known) for end in ends), ends
        assert {type(end) for end in ends} == {NoMessageError, Refusal, asyncio.CancelledError, type(None)}
        assert turns._taken == 0 and not turns._silent and not turns._waiting
        assert await asyncio.gather(*(received(turns) for _ in range(most))) == [b"message"] * most

    run(check())


def test_turns_follow_from_the_bytes_of_the_largest_message() -> None:
    assert Limits().receiving(8192) == 2048 + 256
    assert Limits().receiving(2**20) == 2**30 // (65536 + 2**23)
    assert Limits().receiving(2**26) == 2**30 // 2**26
    assert Limits(receiving_bytes=2**20).receiving(2**26) == 1
