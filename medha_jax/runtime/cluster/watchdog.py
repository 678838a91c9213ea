"""End a process that cannot continue, with one line that says why."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable

LOST = 1
SAY_SECONDS = 1.0


def leave(text: str, code: int = LOST) -> None:
    """Print `error: …` as a single line on stderr and end this process at once, without cleaning up.

    A thread inside a collective cannot be woken if its partner process is gone. A standard error that nobody reads, or
    that cannot be written, does not keep the process.
    """
    _end(f"error: {text}", code)


def depart(text: str) -> None:
    """Print a single line on stderr and end this process at once with 0, because it was asked to stop."""
    _end(text, 0)


def _end(text: str, code: int) -> None:
    line = " ".join(text.split())
    saying = threading.Thread(target=_say, args=(f"{line}\n".encode(errors="replace"),), daemon=True)
    saying.start()
    saying.join(SAY_SECONDS)
    os._exit(code)


def _say(line: bytes) -> None:
    with contextlib.suppress(OSError, AttributeError):  # AttributeError: there is no standard error
        os.write(sys.stderr.fileno(), line)


class Watchdog:
    """Ends this process on the first report of a lost process. It ignores later reports, which are consequences.

    Args:
        tell: called with the text before `leave` ends the process; process 0 passes the text to the followers.
        leave: ends this process with an error text, at once or soon.
        heard: called with the text before anything else.
    """

    def __init__(
        self,
        tell: Callable[[str], None] | None = None,
        leave: Callable[[str], None] = leave,
        heard: Callable[[str], None] | None = None,
    ) -> None:
        self._steps = [step for step in (heard, tell, leave) if step is not None]
        self._lock = threading.Lock()
        self._released = False
        self._barking = threading.Event()

    def release(self) -> None:
        """Ignore lost processes from now on, because the work is done."""
        with self._lock:
            self._released = True

    def lost(self, text: str) -> None:
        """Report a loss. Returns at once if the watchdog was released or another report came first."""
        with self._lock:
            if self._released or self._barking.is_set():
                return
            self._barking.set()
        for step in self._steps:
            step(text)

    def await_cause(self, seconds: float) -> None:
        """After an error, wait in case a lost process is the cause. Then this never returns: the process ends."""
        if self._barking.wait(seconds):
            threading.Event().wait()
