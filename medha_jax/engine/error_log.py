"""A log of errors that repeat."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

EVERY_S = 60.0
Kind = tuple[type[BaseException], str, int]
logger = logging.getLogger(__name__)


class ErrorLog:
    """Logs errors with their tracebacks, but each kind at most once a minute: a disk is not filled by one defect.

    Errors are of one kind if they have the same type and were raised in the same line. Those in between are counted.
    Any thread may call it; it never raises.
    """

    def __init__(self, clock: Callable[[], float], part: str = "the engine") -> None:
        self._clock, self._part = clock, part
        self._lock = threading.Lock()
        self._next: dict[Kind, float] = {}
        self._left_out: dict[Kind, int] = {}

    def __call__(self, error: BaseException) -> None:
        """Log an error, or count it."""
        kind, now = _kind(error), self._clock()
        with self._lock:
            if now < self._next.get(kind, now):
                self._left_out[kind] = self._left_out.get(kind, 0) + 1
                return
            self._next[kind] = now + EVERY_S
            left_out = self._left_out.pop(kind, 0)
        also = f" ({left_out} more of this kind since the last one)" if left_out else ""
        logger.error("%s: %s%s", self._part, str(error) or type(error).__name__, also, exc_info=error)


def _kind(error: BaseException) -> Kind:
    trace = error.__traceback__
    if trace is None:
        return type(error), "", 0
    while trace.tb_next is not None:
        trace = trace.tb_next
    return type(error), trace.tb_frame.f_code.co_filename, trace.tb_lineno
