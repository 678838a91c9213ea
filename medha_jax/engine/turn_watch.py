"""Notices a turn of the engine's thread that does not end."""

from __future__ import annotations

import math

TIMES_PREDICTED = 20.0  # that a turn may take what its ticks were predicted to take
MOST_COUNTED_S = 2.0  # between two looks


class TurnWatch:
    """Counts how long the engine's thread has been in its turn: commands, a tick, and telling of events.

    The engine's thread calls `begin` and `end`; one other thread looks, several times a second. If that one did not run
    either, because the whole process was stopped or the machine slept, the time between two looks counts little.
    """

    def __init__(self) -> None:
        self._turn = 0
        self._under_way = False
        self._seen: int | None = None
        self._waited = self._looked = 0.0

    def begin(self) -> None:
        """A turn begins."""
        self._turn += 1
        self._under_way = True

    def end(self) -> None:
        """The turn is over."""
        self._under_way = False

    def overdue(self, now: float, seconds: float, predicted: float) -> float | None:
        """Look at `now` seconds; returns the limit in seconds if the turn has taken longer, else None.

        The limit is `seconds`, or `TIMES_PREDICTED` times what was predicted, if that is more.
        """
        turn = self._turn if self._under_way else None
        if turn is None or turn != self._seen:
            self._seen, self._waited, self._looked = turn, 0.0, now
            return None
        self._waited += min(now - self._looked, MOST_COUNTED_S)
        self._looked = now
        limit = max(seconds, TIMES_PREDICTED * predicted if math.isfinite(predicted) else 0.0)
        return limit if self._waited > limit else None
