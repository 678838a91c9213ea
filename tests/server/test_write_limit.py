"""The limit of a stream's writes: the late one is cut, whichever timer is set, and no other."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest

from medha_jax.server.write_limit import WriteLimit

LONG = 1000.0


def run(check: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(check, 60))


def test_a_late_write_is_cut_and_the_task_goes_on() -> None:
    async def check() -> None:
        limit = WriteLimit()
        assert not await limit.wait(asyncio.Event().wait(), 0.01)
        assert await limit.wait(asyncio.sleep(0), LONG)
        task = asyncio.current_task()
        assert task is not None and not task.cancelling()
        limit.close()

    run(check())


def test_the_timer_of_an_earlier_write_cuts_no_later_one() -> None:
    """It rings while a later write runs, is set again for that, and cuts it at its own end."""

    async def check() -> None:
        limit, loop = WriteLimit(), asyncio.get_running_loop()
        assert await limit.wait(asyncio.sleep(0), 0.05)
        assert await limit.wait(asyncio.sleep(0.2), LONG), "the first timer rang meanwhile"
        limit.shorten(0.0)  # nothing is written
        began = loop.time()
        assert not await limit.wait(asyncio.Event().wait(), 0.1)
        assert loop.time() - began >= 0.1 - 1e-3, "the timer that was far off has come nearer, and not nearer than that"

    run(check())


def test_a_long_write_is_cut_by_a_shorter_limit() -> None:
    async def check() -> None:
        limit = WriteLimit()
        writing = asyncio.create_task(limit.wait(asyncio.Event().wait(), LONG))
        await asyncio.sleep(0)
        limit.shorten(LONG)
        limit.shorten(0.01)
        assert not await writing

    run(check())


def test_a_cancelled_write_is_not_taken_for_a_late_one() -> None:
    async def check() -> None:
        limit = WriteLimit()
        writing = asyncio.create_task(limit.wait(asyncio.Event().wait(), LONG))
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        both = asyncio.create_task(limit.wait(asyncio.Event().wait(), LONG))
        await asyncio.sleep(0)
        limit.shorten(0.0)
        await asyncio.sleep(0)
        both.cancel()  # late and cancelled: the cancellation wins
        with pytest.raises(asyncio.CancelledError):
            await both

    run(check())


def test_an_error_of_a_write_is_passed_on() -> None:
    async def broken() -> None:
        raise OSError("gone")

    async def check() -> None:
        with pytest.raises(OSError, match="gone"):
            await WriteLimit().wait(broken(), LONG)

    run(check())


def test_closing_leaves_no_timer() -> None:
    async def check() -> None:
        limit = WriteLimit()
        await limit.wait(asyncio.sleep(0), LONG)
        gone = weakref.ref(limit)
        limit.close()
        del limit
        assert gone() is None, "no timer holds it"

    run(check())
