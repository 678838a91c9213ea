"""Streams whose first message has not come yet: bounded in number and time, so that they keep nobody out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue

from medha_jax.protos import plans_pb2 as pb

MOST_SILENT = 16
HELLO_SECONDS = 5.0
NOTES, NOTED_SECONDS = 10, 60.0  # lines about refusals, and in which time


class Hellos:
    """Waits for first messages, in the threads of their streams. If too many are silent, the oldest one gives up."""

    def __init__(self, most: int = MOST_SILENT, seconds: float = HELLO_SECONDS) -> None:
        self._most, self._seconds = most, seconds
        self._lock = threading.Lock()
        self._silent: deque[SimpleQueue[pb.FollowerMessage | None]] = deque()

    def first(self, messages: Iterator[pb.FollowerMessage]) -> pb.Hello | str:
        """The Hello of a stream, or why there is none. Another thread reads it, because gRPC waits without an end."""
        coming: SimpleQueue[pb.FollowerMessage | None] = SimpleQueue()
        threading.Thread(target=_read_first, args=(messages, coming), daemon=True).start()
        with self._lock:
            self._silent.append(coming)
            if len(self._silent) > self._most:
                self._silent.popleft().put(None)
        try:
            message = coming.get(timeout=self._seconds)
        except Empty:
            return f"no hello came within {self._seconds:g} s"
        finally:
            with self._lock:
                if coming in self._silent:
                    self._silent.remove(coming)
        if message is None:
            return "it ended without a hello, or too many others were silent, too"
        return message.hello


def _read_first(messages: Iterator[pb.FollowerMessage], coming: SimpleQueue[pb.FollowerMessage | None]) -> None:
    try:
        coming.put(next(messages, None))
    except Exception:  # gRPC raises a plain Exception if the stream is over
        coming.put(None)


class RefusalNotes:
    """Notes refusals, at most `NOTES` lines in `NOTED_SECONDS`, so that nobody can fill a log. For any thread."""

    def __init__(self, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._note, self._clock, self._lock = note, clock, threading.Lock()
        self._noted: deque[float] = deque(maxlen=NOTES)
        self._left_out = 0

    def refused(self, text: str) -> None:
        """Note a refusal, or count it."""
        with self._lock:
            now = self._clock()
            if len(self._noted) == NOTES and now - self._noted[0] < NOTED_SECONDS:
                self._left_out += 1
                return
            more = f" ({self._left_out} more were refused before)" if self._left_out else ""
            self._left_out = 0
            self._noted.append(now)
        self._note(f"{text}{more}")
