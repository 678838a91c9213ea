"""Clocks that a simulation can move."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Reads seconds; `advance_to` moves a virtual clock and waits on a real one."""

    def __call__(self) -> float:
        """Seconds."""

    def advance_to(self, seconds: float) -> None:
        """Move on to a moment, or wait for it; a moment in the past changes nothing."""


class VirtualClock:
    """Seconds since the simulation began. Call it to read it. Owns the time."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self._now

    def advance_to(self, seconds: float) -> None:
        """Move on to a moment; a moment in the past changes nothing."""
        self._now = max(self._now, seconds)
