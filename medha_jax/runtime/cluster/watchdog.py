"""End a process that cannot continue, with one line that says why."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable

LOST = 1
SAY_SECONDS = 1.0


def leave(text: str, code: int = LOST) -> None:
    """Print `error: …` as a single line on stderr and end this process at once, without cleaning up.

    A thread inside a collective cannot be woken if its partner process is gone. A standard error that nobody reads, or
    that cannot be written, does not keep the process.
    """
    line = " ".join(f"error: {text}".split())
    saying = threading.Thread(target=_say, args=(f"{line}\n".encode(errors="replace"),), daemon=True)
    saying.start()
    saying.join(SAY_SECONDS)
    os._exit(code)


def _say(line: bytes) -> None:
    with contextlib.suppress(OSError, AttributeError):  # AttributeError: there is no standard error
        os.write(sys.stderr.fileno(), line)


class Watchdog:
    """Ends this process on the first report of a lost process. It ignores later reports, which are consequences.

    `tell` is called with the text before `leave` ends the process; process 0 passes the text to the followers.
    """

    def __init__(self, tell: Callable[[str], None] | None = None, leave: Callable[[str], None] = leave) -> None:
        self._tell = tell
        self._leave = leave
        self._lock = threading.Lock()
        self._released = False
        self._barking = False

    def release(self) -> None:
        """Ignore lost processes from now on, because the work is done."""
        with self._lock:
            self._released = True

    def lost(self, text: str) -> None:
        """Report a loss. Returns only if the watchdog was released or another report came first."""
        with self._lock:
            if self._released or self._barking:
                return
            self._barking = True
        if self._tell is not None:
            self._tell(text)
        self._leave(text)

    def await_cause(self, seconds: float) -> None:
        """After an error, wait in case a lost process is the cause; its report would end this process."""
        time.sleep(seconds)
