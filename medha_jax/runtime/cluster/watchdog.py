"""Ending a process that can no longer do its part, with one line that says why."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

LOST = 1


def leave(text: str, code: int = LOST) -> None:
    """Print `error: …` as a single line on stderr and end this process at once, whatever its threads do.

    A thread inside a collective whose partner is gone cannot be woken, so nothing is cleaned up.
    """
    line = " ".join(f"error: {text}".split())
    os.write(sys.stderr.fileno(), f"{line}\n".encode(errors="replace"))
    os._exit(code)


class Watchdog:
    """Takes the first report that a process is lost and ends this one; later reports are its consequences.

    Args:
        tell: told the text before this process ends (process 0 passes it on).
        leave: ends the process.
    """

    def __init__(self, tell: Callable[[str], None] | None = None, leave: Callable[[str], None] = leave) -> None:
        self._tell = tell
        self._leave = leave
        self._lock = threading.Lock()
        self._released = False
        self._barking = False

    def release(self) -> None:
        """From now on nothing that is lost matters: the work is done."""
        with self._lock:
            self._released = True

    def lost(self, text: str) -> None:
        """Report a loss; does not return unless the work was done or another report came first."""
        with self._lock:
            if self._released or self._barking:
                return
            self._barking = True
        if self._tell is not None:
            self._tell(text)
        self._leave(text)

    def await_cause(self, seconds: float) -> None:
        """Give the cause of an error that may be a lost process this long to be reported (which ends this one)."""
        time.sleep(seconds)
