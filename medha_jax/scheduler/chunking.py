"""Adaptive chunking: how large the next chunk is, and what a whole prompt takes in such chunks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from medha_jax.config import Buckets
from medha_jax.scheduler.time_model import TimeModel
from medha_jax.specs.buckets import smallest_sizes
from medha_jax.specs.chunk_work import chunk_attentions, chunk_reads
from medha_jax.specs.tick_shapes import TickShapes


def candidates(buckets: Buckets, used: int, most: int) -> list[int]:
    """Lengths worth trying for the next chunk, smallest first; padding costs as much as tokens do.

    They fill a bucket in which `used` prompt tokens are taken already, or end where the chunk must end (`most`
    tokens on: the end of the prompt or of a group's part). A chunk that ends elsewhere has at least the tokens of the
    smallest bucket, because each reads its whole context once. One token alone is a decode row and uses no bucket.
    """
    if most == 1:
        return [1]
    room = buckets.prefill[-1] - used
    least = max(2, buckets.prefill[0])
    found = [size - used for size in buckets.prefill if least <= size - used < most]
    return [*found, most] if most <= room else found


def largest_within(lengths: Sequence[int], seconds: Callable[[int], float], limit: float) -> int:
    """The largest length whose tick stays within `limit` seconds; 0 if none does.

    Args:
        lengths: increasing.
        seconds: of the tick with a chunk of that length; it grows with the length.
        limit: seconds.
    """
    fitting = bisect_right(lengths, limit, key=seconds)
    return lengths[fitting - 1] if fitting else 0


def worthwhile(lengths: Sequence[int], seconds: Callable[[int], float], least: int, limit: float) -> int:
    """Of the lengths from `least` on whose tick is within `limit` seconds, that with the smallest `seconds² / length`.

    That weighs what a token of the prompt costs against how long others wait for the tick's end. Of a tick of
    `read + length * row` seconds it is smallest at `read / row`: where a chunk's rows take as long as reading its
    context, half of it would save a quarter of the tick and do half of the work.

    Args:
        lengths: increasing.
        seconds: of the tick with a chunk of that length; it grows with the length.
        least: one of the lengths, which may take longer.
        limit: seconds.
    """
    tried = [length for length in lengths if length == least or (length > least and seconds(length) <= limit)]
    return min(tried, key=lambda length: seconds(length) ** 2 / length)


class PrefillTable:
    """Seconds that a lone prompt takes in adaptive chunks, by position: a prefix sum of its ticks.

    Medha's Algorithm 3: the remaining work of a request is `C[total] - C[done]`. There C counts chunks through the
    whole model and is divided by the pipeline's stages; here it counts ticks, each of which is one stage's time.

    Args:
        model: predicts a tick.
        shapes: of ticks.
        target: seconds that a tick aims at.
    """

    def __init__(self, model: TimeModel, shapes: TickShapes, target: float) -> None:
        self._model, self._shapes, self._target = model, shapes, target
        starts, seconds = self._chunks()
        self._positions = np.append(starts, float(shapes.context))
        self._elapsed = np.concatenate([[0.0], np.cumsum(seconds)])
        self._probe = np.unique(np.linspace(0, len(starts) - 1, 5).astype(int))
        self._probed = seconds[self._probe]

    def elapsed(self, tokens: np.ndarray) -> np.ndarray:
        """Seconds until `tokens` prompt tokens `[requests]` are computed, alone on the machine."""
        seconds: np.ndarray = np.interp(tokens, self._positions, self._elapsed)
        return seconds

    def between(self, done: int, total: int) -> float:
        """Seconds for the positions `[done, total)`."""
        return self._at(total) - self._at(done)

    def _at(self, tokens: int) -> float:
        """`elapsed` of one prompt: in a plan, a search costs less than arrays of one."""
        positions, elapsed = self._positions, self._elapsed
        place = bisect_right(positions, tokens)
        if place == len(positions):
            return float(elapsed[-1])
        start, taken = positions[place - 1], elapsed[place - 1]
        return float(taken + (tokens - start) * (elapsed[place] - taken) / (positions[place] - start))

    def stale(self, tolerance: float = 0.1) -> bool:
        """Whether the model now says something else about this table's chunks, by more than a fraction of it."""
        at = self._positions[:-1][self._probe]
        now = self._seconds(at, self._positions[1:][self._probe] - at)
        return bool(np.any(np.abs(now - self._probed) > tolerance * np.maximum(self._probed, 1e-9)))

    def _chunks(self) -> tuple[np.ndarray, np.ndarray]:
        """Start and seconds of every chunk."""
        shapes, starts, seconds = self._shapes, [], []
        borders = sorted({0, min(shapes.per_group, shapes.context), shapes.context})
        for first, last in pairwise(borders):
            for part, taken in self._part(first, last):
                starts.append(part)
                seconds.append(taken)
        return np.concatenate(starts), np.concatenate(seconds)

    def _part(self, first: int, last: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Chunks of the positions `[first, last)`: each size is used until a tick of it becomes too long."""
        sizes = self._shapes.buckets(first).prefill
        for size in reversed(sizes):
            at = np.arange(first, last, size, dtype=np.float64)
            taken = self._seconds(at, np.minimum(size, last - at))
            count = len(at)
            if size != sizes[0]:
                # the context grows and so does the time of a chunk: what is too long once stays so
                count = int(np.searchsorted(np.maximum.accumulate(taken), self._target, side="right"))
            if count:
                yield at[:count], taken[:count]
                first = min(last, first + count * size)
            if first == last:
                return

    def _seconds(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Seconds of lone chunks, each in its smallest bucket."""
        shapes = self._shapes
        own, shared = shapes.own, shapes.shared
        spread = starts >= shapes.per_group
        rows = np.where(
            spread,
            own.decode[0] + own.prefill_sizes[0] + shared.decode[0] + smallest_sizes(shared.prefill, lengths),
            own.decode[0] + smallest_sizes(own.prefill, lengths),
        )
        attention = chunk_attentions(starts, lengths, shapes.per_group)
        return self._model.many(rows, attention, chunk_reads(starts + lengths, shapes.per_group), np.ones_like(starts))
