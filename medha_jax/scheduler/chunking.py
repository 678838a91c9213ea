"""Adaptive chunking: the length of the next chunk, and the seconds of a whole prompt in such chunks."""

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
    """Lengths worth trying for the next chunk, smallest first.

    Padding costs as much as tokens, so a chunk fills a bucket that already holds `used` prompt tokens. Or it ends
    after `most` tokens, at the end of the prompt or of a group's part. Every chunk reads its whole context, so other
    chunks are no shorter than the smallest bucket. One token alone is a decode row and uses no bucket.
    """
    if most == 1:
        return [1]
    room = buckets.prefill[-1] - used
    least = max(2, buckets.prefill[0])
    found = [size - used for size in buckets.prefill if least <= size - used < most]
    return [*found, most] if most <= room else found


def largest_within(lengths: Sequence[int], seconds: Callable[[int], float], limit: float) -> int:
    """The largest of the increasing `lengths` whose tick stays within `limit` seconds; 0 if none does.

    `seconds` gives the tick's time with a chunk of that length. It grows with the length.
    """
    fitting = bisect_right(lengths, limit, key=seconds)
    return lengths[fitting - 1] if fitting else 0


def worthwhile(lengths: Sequence[int], seconds: Callable[[int], float], least: int, limit: float) -> int:
    """The length with the smallest `seconds² / length`, among `least` and longer ones within `limit` seconds.

    This weighs the cost of a prompt token against the time that others wait for the tick's end. A tick of
    `read + length * row` seconds has its minimum at `read / row`: the chunk's rows take as long as reading its
    context. Half of that chunk would save a quarter of the tick and do half of the work.

    `lengths` and `seconds` are as in `largest_within`. `least` is one of the lengths and may exceed the limit.
    """
    tried = [length for length in lengths if length == least or (length > least and seconds(length) <= limit)]
    return min(tried, key=lambda length: seconds(length) ** 2 / length)


class PrefillTable:
    """Seconds of a lone prompt in adaptive chunks, by position: a prefix sum of its ticks.

    Medha's Algorithm 3: the remaining work of a request is `C[total] - C[done]`. The paper sums chunks through the
    whole model and divides by the pipeline's stages. Here C sums ticks; a tick is the time of one stage.
    `target` is the seconds that a tick aims at.
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
        """`elapsed` of one prompt: a search is faster than an array of one entry."""
        positions, elapsed = self._positions, self._elapsed
        place = bisect_right(positions, tokens)
        if place == len(positions):
            return float(elapsed[-1])
        start, taken = positions[place - 1], elapsed[place - 1]
        return float(taken + (tokens - start) * (elapsed[place] - taken) / (positions[place] - start))

    def stale(self, tolerance: float = 0.1) -> bool:
        """Whether the model's prediction for this table's chunks has changed by more than this fraction."""
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
        """Starts and seconds of the chunks of `[first, last)`. Each size is used until its tick becomes too long."""
        sizes = self._shapes.buckets(first).prefill
        for size in reversed(sizes):
            at = np.arange(first, last, size, dtype=np.float64)
            taken = self._seconds(at, np.minimum(size, last - at))
            count = len(at)
            if size != sizes[0]:
                # a chunk's time grows with its context: once too long, it stays too long
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
