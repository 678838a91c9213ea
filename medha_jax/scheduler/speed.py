"""How fast prompt work gets done in the mix that is running."""

from __future__ import annotations

import math

import numpy as np

MEMORY_S = 20.0  # a decode of the length of the authors' trace takes as long
MARGIN = 0.95  # of the speed that was seen is counted on, for short requests that will come meanwhile
LEAST = 0.3


class Speed:
    """Owns the measured speed of prompts: predicted seconds of their work that are done in a second.

    Predictions are for a prompt that is alone. Decodes take a part of every tick, and where there are none ticks are
    longer and chunks larger than predicted, so it is below or above 1. Recent seconds count more, by
    `e^(-age / MEMORY_S)`.
    """

    def __init__(self) -> None:
        self._done = self._seconds = MEMORY_S / 4  # as if a while at speed 1 had been seen
        self._pending = 0.0
        self._now, self._newest = -math.inf, -1.0

    @property
    def expected(self) -> float:
        """Speed that can be counted on; never more than predicted."""
        return min(max(MARGIN * self._done / self._seconds, LEAST), 1.0)

    def worked(self, seconds: float) -> None:
        """So much predicted work is in a plan."""
        self._pending += seconds

    def passed(self, numbers: np.ndarray, now: float) -> float:
        """Seconds since the last call; 0 if the prompts of that time are all gone, for then nothing may have run.

        Args:
            numbers: of the prompts that have work left, at least one.
            now: seconds.
        """
        passed = now - self._now if numbers.min() <= self._newest else 0.0
        if passed > 0:
            faded = math.exp(-passed / MEMORY_S)
            self._done = self._done * faded + self._pending
            self._seconds = self._seconds * faded + passed
        if passed > 0 or numbers.min() > self._newest:
            self._pending = 0.0
        self._now, self._newest = now, float(numbers.max())
        return passed
