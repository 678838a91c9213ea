"""Adaptive chunking: the length of the next chunk, and the seconds of a whole prompt in such chunks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np

from medha_jax.config import Buckets
from medha_jax.scheduler.time_model import TimeModel
from medha_jax.specs.buckets import many_padded_sizes, smallest_sizes
from medha_jax.specs.chunk_work import chunk_attentions, chunk_reads
from medha_jax.specs.tick_shapes import TickShapes

F = TypeVar("F", float, np.ndarray)
WORTH_S = 2.0  # a chunk whose layer takes this many seconds must need half as many seconds a token as a tiny one


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


def weighed(seconds: F, layer: F) -> F:
    """A measure of a chunk in slices, the less the better: its seconds per token, and what others may wait for.

    A newcomer waits for at most one slice, which is at least one layer of `layer` seconds. Large chunks need fewer
    seconds a token, because they read their context and the weights less often.
    """
    return seconds * (1 + layer / WORTH_S)


class PrefillTable:
    """Seconds of a lone prompt in adaptive chunks, by position: a prefix sum of its ticks, or rounds of slices.

    Medha's Algorithm 3: the remaining work of a request is `C[total] - C[done]`. The paper sums chunks through the
    whole model and divides by the pipeline's stages. Here C sums ticks; a tick is the time of one stage.
    `target` is the seconds that a tick aims at, `slice_s` those of a slice. Where slices are compiled, the cheaper lane
    counts at every position.
    """

    def __init__(self, model: TimeModel, shapes: TickShapes, target: float, slice_s: float) -> None:
        self._model, self._shapes, self._target, self._slice = model, shapes, target, slice_s
        starts, seconds = self._chunks()
        self._positions = np.append(starts, float(shapes.context))
        self._elapsed = _running(seconds)
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
        starts, seconds = self._chunks()
        elapsed = np.interp(self._positions, np.append(starts, self._positions[-1]), _running(seconds))
        now = np.diff(elapsed)[self._probe]
        return bool(np.any(np.abs(now - self._probed) > tolerance * np.maximum(self._probed, 1e-9)))

    def _chunks(self) -> tuple[np.ndarray, np.ndarray]:
        """Start and seconds of every chunk."""
        shapes, starts, seconds = self._shapes, [], []
        borders = sorted({0, min(shapes.per_group, shapes.context), shapes.context})
        for first, last in pairwise(borders):
            parts = self._sliced(first, last) if shapes.buckets(first).slices else self._part(first, last)
            for part, taken in parts:
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

    def _sliced(self, first: int, last: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same where slices are compiled: stretches as long as the largest slice, each at its least cost a token.

        A chunk in a tick counts if it keeps the target, and of slices the chunk that `weighed` prefers.
        """
        buckets = self._shapes.buckets(first)
        at = np.arange(first, last, buckets.slices[-1], dtype=np.float64)
        lengths = np.minimum(buckets.slices[-1], last - at)
        kinds = [np.full_like(at, size) for size in buckets.slices]
        stages = np.array([self._slice_seconds(at, kind, self._shapes.layers) / kind for kind in kinds])
        layers = np.array([self._slice_seconds(at, kind, 1) for kind in kinds])
        chosen = np.array(buckets.slices, float)[np.argmin(weighed(stages, layers), axis=0)]
        cost = self._round_seconds(at, chosen) / chosen
        for size in buckets.prefill:
            taken = self._seconds(at, np.full_like(at, size))
            cost = np.where(taken <= self._target, np.minimum(cost, taken / size), cost)
        yield at, cost * lengths

    def _round_seconds(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Seconds of lone chunks through a stage, in slices of at most `slice_s`, or of the fewest layers."""
        possible, layers = np.array(self._shapes.slice_lengths), self._shapes.layers
        one, all_of_them = (self._slice_seconds(starts, lengths, count) for count in (1, layers))
        further = (all_of_them - one) / max(layers - 1, 1)
        within = np.divide(self._slice - one, further, out=np.full_like(one, layers), where=further > 0) + 1
        most = possible[np.maximum(np.searchsorted(possible, within, side="right") - 1, 0)]
        seconds: np.ndarray = self._slice_seconds(starts, lengths, most) * layers / most
        return seconds

    def _slice_seconds(self, starts: np.ndarray, lengths: np.ndarray, layers: int | np.ndarray) -> np.ndarray:
        """Seconds of lone chunks in one slice of so many layers."""
        shapes, count = self._shapes, np.broadcast_to(np.asarray(layers, float), starts.shape)
        spread = starts >= shapes.per_group
        rows = np.where(spread, *(smallest_sizes(kind.slices or (0,), lengths) for kind in (shapes.shared, shapes.own)))
        attention = chunk_attentions(starts, lengths, shapes.per_group)
        reads = chunk_reads(starts + lengths, shapes.per_group)
        return self._model.slices.many(count * rows, count * attention, count * reads, count)

    def _seconds(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Seconds of lone chunks, each in its smallest bucket."""
        shapes = self._shapes
        own, shared = shapes.own, shapes.shared
        spread = starts >= shapes.per_group
        none = np.zeros_like(lengths)
        rows = np.add(*many_padded_sizes(own, none, np.where(spread, 0, lengths)))
        rows += np.where(spread, np.add(*many_padded_sizes(shared, none, lengths)), 0)
        attention = chunk_attentions(starts, lengths, shapes.per_group)
        return self._model.many(rows, attention, chunk_reads(starts + lengths, shapes.per_group), np.ones_like(starts))


def _running(seconds: np.ndarray) -> np.ndarray:
    """The sums of the first 0, 1, 2, ... entries."""
    return np.concatenate([[0.0], np.cumsum(seconds)])
