"""What stops a server: its caller's event, or signals. SIGHUP asks for something else."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

LAST_SECONDS = 15  # from the second signal to the end of the process, whatever it does


class Stopping:
    """Stops a server by the caller's event or by signals. Belongs to the event loop; signals come in the main thread.

    The first signal asks the server to stop, the second one to hurry. From then on the system's timer ends the process
    after `LAST_SECONDS`, even if no thread of it runs any more. SIGHUP calls `on_hangup` in the event loop.

    Attributes:
        asked: set when the server must stop.
        hurry: set when it must end running streams at once.
    """

    def __init__(self, asked: asyncio.Event | None, on_hangup: Callable[[], None]) -> None:
        self.asked, self.hurry = asyncio.Event() if asked is None else asked, asyncio.Event()
        stopping, renewing = self._on_signal, self._on_hangup
        wanted = {signal.SIGTERM: stopping, signal.SIGINT: stopping, signal.SIGHUP: renewing}
        self._handlers = wanted if asked is None else {}
        self._hangup = on_hangup
        self._before: dict[int, Any] = {}
        self._loop = asyncio.get_running_loop()
        self._came = False

    def listen(self) -> None:
        """Install the signal handlers."""
        for number, handler in self._handlers.items():
            before = signal.signal(number, handler)
            self._before.setdefault(number, before)

    def leave(self) -> None:
        """Bring the signal handlers of before back."""
        for number, before in self._before.items():
            signal.signal(number, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Run between two steps of whatever the main thread does."""
        if self._came:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LAST_SECONDS)
        wanted = self.hurry if self._came else self.asked
        self._came = True
        self._loop.call_soon_threadsafe(wanted.set)

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._hangup)
