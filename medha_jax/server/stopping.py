"""What stops a server: its caller's event, or signals."""

from __future__ import annotations

import asyncio
import signal
from types import FrameType
from typing import Any

LAST_SECONDS = 15  # from the second signal to the end of the process, whatever it does


class Stopping:
    """Stops a server by the caller's event or by signals. Belongs to the event loop; signals come in the main thread.

    The first signal asks the server to stop, the second one to hurry. From then on the system's timer ends the process
    after `LAST_SECONDS`, even if no thread of it runs any more.

    Attributes:
        asked: set when the server must stop.
        hurry: set when it must end running streams at once.
    """

    def __init__(self, asked: asyncio.Event | None) -> None:
        self.asked, self.hurry = asyncio.Event() if asked is None else asked, asyncio.Event()
        self._signals = (signal.SIGTERM, signal.SIGINT) if asked is None else ()
        self._before: dict[int, Any] = {}
        self._loop = asyncio.get_running_loop()
        self._came = False

    def listen(self) -> None:
        """Install the signal handlers."""
        for number in self._signals:
            before = signal.signal(number, self._on_signal)
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
