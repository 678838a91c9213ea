"""Objectives of requests: fixed ones, or a deadline that follows the length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medha_jax.config import SchedulerConfig
from medha_jax.workload.config import MAX_PROMPT, MAX_SECONDS, within
from medha_jax.workload.mixes import WorkloadError

DEFAULTS = SchedulerConfig()  # made once: it checks its settings, and every request asks for its deadline


@dataclass(frozen=True)
class Slos:
    """Objectives of every request, in seconds.

    Args:
        ttft_s: to the first token; None for the deadline that follows the length.
        tpot_s: for each output token after the first; None for no objective.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("TTFT objective", self.ttft_s), ("TPOT objective", self.tpot_s)):
            if value is not None:
                within(f"{name} in seconds", value, 1e-6, MAX_SECONDS)

    def deadline_s(self, alone_s: float | None) -> float | None:
        """Most seconds from sending to the first token: `ttft_s`, else max(1.5 × alone, 0.5 s).

        `alone_s` is the seconds of the prefill alone. None if neither is known.
        """
        if self.ttft_s is not None:
            return self.ttft_s
        return None if alone_s is None else DEFAULTS.default_deadline_s(alone_s)


class Isolated:
    """Seconds of a prefill alone by its tokens, from a few measurements.

    Seconds per token grow about linearly with the tokens, because of attention, so they are interpolated. Beyond the
    longest measured prompt the last slope continues. Shorter prompts take the seconds of the shortest.
    """

    def __init__(self, measured: Sequence[tuple[int, float]]) -> None:
        """Take measurements: (tokens, seconds) of prefills, each of another length.

        Raises:
            WorkloadError: there are none, two have the same length, or one is not above zero.
        """
        points = sorted(measured)
        tokens = [point[0] for point in points]
        if not points or len(set(tokens)) < len(tokens):
            raise WorkloadError(f"{len(points)} measured prefills; it takes at least one, each of another length")
        for count, seconds in points:
            within("measured prompt tokens", count, 1, MAX_PROMPT)
            within("measured seconds", seconds, 1e-9, MAX_SECONDS)
        self._points = [(count, seconds / count) for count, seconds in points]

    def __call__(self, tokens: int) -> float:
        """Seconds of a prompt of `tokens` tokens."""
        points = self._points
        if tokens <= points[0][0] or len(points) == 1:
            first, each = points[0]
            return each * max(first, tokens)
        after = next((i for i, (count, _) in enumerate(points) if count >= tokens), len(points) - 1)
        (low, low_each), (high, high_each) = points[after - 1], points[after]
        slope = (high_each - low_each) / (high - low)
        if tokens > high:
            slope = max(0.0, slope)
            return tokens * (high_each + slope * (tokens - high))
        return tokens * (low_each + slope * (tokens - low))
