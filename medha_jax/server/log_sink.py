"""Lines for a log, written by a thread: who logs never waits for a reader, and never gets its errors."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque

MOST_WAITING = 8192  # lines
MOST_AT_ONCE = 64  # lines of one write
POLL_MS = 1000


class LogSink:
    """Writes lines to a file descriptor, in order, from its own thread. Any thread may call it.

    A line is dropped and counted if `most_waiting` others wait, because the reader stands still, or if it cannot be
    written, because the reader is gone or the disk is full. Without a descriptor all lines are dropped.
    """

    def __init__(self, descriptor: int | None, most_waiting: int = MOST_WAITING) -> None:
        self._descriptor, self._most = descriptor, most_waiting
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque()
        self._writing = 0
        self._dropped = 0
        threading.Thread(target=self._main, name="log", daemon=True).start()

    @property
    def dropped(self) -> int:
        """Lines that were dropped so far."""
        with self._changed:
            return self._dropped

    def write(self, line: str) -> None:
        """Log a line, or drop it."""
        with self._changed:
            if self._descriptor is None or len(self._waiting) >= self._most:
                self._dropped += 1
            else:
                self._waiting.append(line)
                self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until what was logged is written or dropped, at most `seconds`; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._writing, seconds)

    def _main(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                lines = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_AT_ONCE))]
                self._writing = len(lines)
            failed = not self._write("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
            with self._changed:
                self._dropped += len(lines) * failed
                self._writing = 0
                self._changed.notify_all()

    def _write(self, text: bytes) -> bool:
        """Write all of a text, however long that takes; returns False after an error."""
        assert self._descriptor is not None
        while text:
            try:
                text = text[os.write(self._descriptor, text) :]
            except BlockingIOError:  # another process made the shared descriptor non-blocking
                waiting = select.poll()
                waiting.register(self._descriptor, select.POLLOUT)
                waiting.poll(POLL_MS)
            except OSError:
                return False
        return True


class SinkHandler(logging.Handler):
    """Passes records of `logging` to a sink, without a wait."""

    def __init__(self, sink: LogSink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record."""
        try:
            self._sink.write(self.format(record))
        except Exception:  # a message that does not fit its arguments, for example; `handleError` would print
            self._sink.write(f"a record of {record.name} cannot be formatted: {record.msg!r}")
