"""Messages that are being received: how many at once, and how long their calls may be silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from grpc import StatusCode

from medha_jax.server.refusal import Refusal, too_busy

PATIENCE = 0.5  # seconds that a call may be silent although others wait for its turn


class NoMessageError(Exception):
    """No message came in time."""


def no_message(seconds: float) -> Refusal:
    """The refusal of a call whose message did not come within so many seconds."""
    return Refusal(StatusCode.DEADLINE_EXCEEDED, f"no message came within {seconds:g} s")


class _Silence:
    """A call that has a turn and no message yet. Owns whether it was ended for others."""

    def __init__(self, task: asyncio.Task[None], began: float) -> None:
        self.task, self.began, self.ended = task, began, False


class Receiving:
    """Bounds how many messages are received at once, and so their bytes. Belongs to the event loop.

    A message is received in a turn, which ends when its bytes are no longer needed. If all turns are taken, the call
    that has been silent for longest gives its own to the newest one that waits, after `PATIENCE` seconds: who says
    nothing keeps nobody out. As many calls as there are turns may wait for one; the oldest is ended beyond that.

    Args:
        most: turns.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._silent: dict[_Silence, None] = {}  # oldest first
        self._waiting: dict[asyncio.Future[None], None] = {}  # oldest first
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def message(self, messages: AsyncIterator[bytes], ends: float) -> AsyncIterator[bytes | None]:
        """The next message of a call, None after the last one; its turn ends with the block.

        Raises:
            NoMessageError: none came before `ends`, in seconds of the loop.
            Refusal: the call was silent while others waited for its turn.
        """
        silence: _Silence | None = None
        try:
            try:
                async with asyncio.timeout_at(ends):
                    await self._turn()
                    task = asyncio.current_task()
                    assert task is not None
                    silence = _Silence(task, asyncio.get_running_loop().time())
                    data = await self._next(messages, silence)
            except TimeoutError:
                raise NoMessageError from None
            yield data
        finally:
            if silence is not None and not silence.ended:
                self._pass_on()

    async def _turn(self) -> None:
        """Wait for a turn."""
        if self._taken < self._most:
            self._taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        if len(self._waiting) > self._most:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            if not oldest.done():
                oldest.set_exception(self._refusal())
        self._make_room()
        try:
            await turn
        except asyncio.CancelledError:
            if self._waiting.pop(turn, turn) is turn and not turn.cancelled() and turn.exception() is None:
                self._pass_on()  # it came in the same moment
            raise

    async def _next(self, messages: AsyncIterator[bytes], silence: _Silence) -> bytes | None:
        cancelling = silence.task.cancelling()
        self._silent[silence] = None
        try:
            return await anext(messages, None)
        except asyncio.CancelledError:
            if silence.ended and silence.task.uncancel() <= cancelling:
                raise self._refusal() from None
            raise
        finally:
            self._silent.pop(silence, None)

    def _pass_on(self) -> None:
        """Give a turn to the newest call that waits, or back."""
        while self._waiting:
            newest, _ = self._waiting.popitem()
            if not newest.done():
                newest.set_result(None)
                return
        self._taken -= 1

    def _make_room(self) -> None:
        """End calls that have been silent for long, one for each that waits."""
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        while self._waiting and self._silent:
            oldest = next(iter(self._silent))
            due = oldest.began + PATIENCE
            if loop.time() < due:
                self._timer = loop.call_at(due, self._ring)
                return
            del self._silent[oldest]
            oldest.ended = True
            oldest.task.cancel()
            self._pass_on()

    def _ring(self) -> None:
        self._timer = None
        self._make_room()

    def _refusal(self) -> Refusal:
        return too_busy(f"{self._most} calls wait for their messages; send the message with the call")
