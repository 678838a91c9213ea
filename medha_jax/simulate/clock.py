"""A clock that only moves when it is told to."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Seconds; time passes when `advance_to` says so, or by itself."""

    def __call__(self) -> float:
        """Seconds."""

    def advance_to(self, seconds: float) -> None:
        """Move on to a moment, or wait for it; one that has passed changes nothing."""


class VirtualClock:
    """Seconds since the simulation began; the only owner of its time. Call it to read it."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self._now

    def advance_to(self, seconds: float) -> None:
        """Move on to a moment; one that has passed changes nothing."""
        self._now = max(self._now, seconds)
