"""What a tick has to compute, and what predicts its seconds from that."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class TickWork(NamedTuple):
    """The features of a tick's time, of its largest pipeline stage and KV group.

    A tuple, because a plan makes dozens: a frozen dataclass takes twice as long to make.

    Args:
        tokens: rows of the bucket, padding included: decode rows and prompt tokens, own and shared.
        attention: sum over prompt rows of the context that they attend to, in tokens².
        context: KV tokens read: sum over decodes and prompt chunks of their context, in tokens.
        rows: real rows of one token, and prompt chunks: each is sampled once.
    """

    tokens: int = 0
    attention: float = 0.0
    context: float = 0.0
    rows: int = 0


class TimeModel(Protocol):
    """Predicts the seconds of a tick: fixed coefficients, fitted ones, or a roofline."""

    def seconds(self, work: TickWork) -> float:
        """Seconds of one tick, which every stage of a pipeline takes in lockstep."""

    def many(self, tokens: np.ndarray, attention: np.ndarray, context: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Seconds of many ticks; float64 arrays of one shape `[ticks]`, features as in `TickWork`."""

    def observe(self, work: TickWork, seconds: float) -> None:
        """Learn from a measured tick; a fixed model ignores it."""
