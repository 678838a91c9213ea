"""A limit to the time of one write after the other, with one timer for all of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable


class WriteLimit:
    """Cuts a write that takes too long. Belongs to the event loop; owns its timer. One write at a time.

    `asyncio.timeout` sets and cancels a timer for every write, which takes longer than the rest of a short one. This
    timer is left alone when a write ends. If it rings while a later one runs, it is set again for that one.
    """

    def __init__(self) -> None:
        self._ends = math.inf  # when the current write is cut, in seconds of the loop
        self._task: asyncio.Task[None] | None = None  # that writes now
        self._timer: asyncio.TimerHandle | None = None
        self._cut = False

    async def wait(self, writing: Awaitable[None], seconds: float) -> bool:
        """Wait for a write; returns False if it was cut after so many seconds, or what `shorten` left of them."""
        task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        self._task, self._cut = task, False
        self._end(asyncio.get_running_loop().time() + seconds)
        try:
            await writing
        except BaseException as error:
            if self._cut and task.uncancel() <= cancelling and isinstance(error, asyncio.CancelledError):
                return False
            raise
        finally:
            self._task = None
        return True

    def shorten(self, seconds: float) -> None:
        """Let the current write, if there is one, take at most so many seconds from now."""
        if self._task is not None and not self._cut:
            self._end(min(self._ends, asyncio.get_running_loop().time() + seconds))

    def close(self) -> None:
        """Give the timer back; no write may follow."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, ends: float) -> None:
        self._ends = ends
        if self._timer is None or self._timer.when() > ends:
            self.close()
            self._timer = asyncio.get_running_loop().call_at(ends, self._ring, ends)

    def _ring(self, time: float) -> None:
        self._timer = None
        if self._task is None:
            return
        if time < self._ends:
            self._end(self._ends)
        else:
            self._cut = True
            self._task.cancel()
