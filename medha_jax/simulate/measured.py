"""Measured ticks and slices of a machine, and a time model with coefficients fitted to them.

    seconds = base[shape] + squares x attention + read x context + decoded x decode + rows x row + beside x mixed
              + (felt + felt_tokens x rows of the shape) x (slowness - 1)
    host_s  = host + rows x host_row + host_felt x (slowness - 1)

`squares`, `read` and `decoded` are those of the slowest stage and group (`GroupWork`). `mixed` is 1 if decodes run
beside prompts, else 0. docs/simulation.md says why a slow machine adds milliseconds by shape.

Programs read KV in blocks: `read` is rounded up to a multiple of `block` for each chunk, `decoded` to one of
`decode_block`. The fit (`fitting`) tries block sizes and keeps the best. It is robust, with a base linear in rows. A
shape with enough ticks then gets its own base, the median of the rest.

Slices are predicted by a model of their own, linear in the features of `slice_work`.

This predicts the median of equal ticks, but requests wait for slow ones, too. `delays` is the mean of measured over
predicted seconds, and multiplies simulated ticks and slices. The host's time is a mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from medha_jax.scheduler.time_model import LinearTimeModel, TickWork, slice_work
from medha_jax.simulate.times import GroupWork
from medha_jax.specs.buckets import Bucket

SHORT_CONTEXT = 1024


@dataclass(frozen=True)
class MeasuredTick:
    """A measured tick: its shape, the work of its slowest group, its seconds, and the host's seconds before it.

    `slowness` is the machine's at that time, measured by a probe; 1 is its best.
    """

    shape: Bucket
    work: GroupWork
    seconds: float
    host_s: float | None = None
    slowness: float = 1.0

    @property
    def regime(self) -> str:
        """The kind of tick, for reporting errors."""
        if not self.work.chunks:
            return "decodes alone"
        if self.work.rows > len(self.work.chunks):
            return "prompts beside decodes"
        longest = max(read for _, read in self.work.chunks)
        return f"prompts, up to {SHORT_CONTEXT:,} tokens" if longest <= SHORT_CONTEXT else "prompts, longer"


@dataclass(frozen=True)
class MeasuredSlice:
    """A measured slice: its shape and layers `[first, past)`, the work of its slowest group, and its seconds."""

    shape: Bucket
    first: int
    past: int
    work: GroupWork
    seconds: float

    @property
    def features(self) -> TickWork:
        """What its time is predicted from."""
        return slice_work(self.past - self.first, self.shape.rows, *self.work.sums)


@dataclass(frozen=True)
class MeasuredTimes:
    """Tick and slice times from measured coefficients; a time model for the scheduler and for the devices.

    Args:
        fixed, tokens: base of a shape that has no own one: seconds, and seconds per row of the shape.
        attention: seconds per prompt row and token of its context.
        context: seconds per token of KV that prompt chunks read.
        decode: seconds per token of KV that decodes read.
        row: seconds per real row.
        beside: seconds added if decodes run beside prompts.
        bases: seconds of shapes that were measured often enough.
        block, decode_block: tokens read at once, by prompt chunks and by decodes.
        delays: mean of measured over predicted seconds; the scheduler does not predict it.
        felt, felt_tokens: added at slowness 2: seconds, and seconds per row of the shape.
        host, host_row: of the host between ticks: seconds, and seconds per real row; not predicted by the scheduler.
        host_felt: seconds of the host added at slowness 2.
        slices: predicts slices; without measured ones it means nothing.
    """

    fixed: float
    tokens: float
    attention: float
    context: float
    decode: float
    row: float
    beside: float = 0.0
    bases: Mapping[Bucket, float] = field(default_factory=dict)
    block: int = 1
    decode_block: int = 1
    delays: float = 1.0
    felt: float = 0.0
    felt_tokens: float = 0.0
    host: float = 0.0
    host_row: float = 0.0
    host_felt: float = 0.0
    slices: LinearTimeModel = field(default_factory=LinearTimeModel)

    def base(self, shape: Bucket) -> float:
        """Seconds of an empty shape."""
        known = self.bases.get(shape)
        return self.fixed + self.tokens * shape.rows if known is None else known

    def group_seconds(self, shape: Bucket, work: GroupWork) -> float:
        """Seconds of a group's part of a tick, and of the host before it."""
        return self.delays * self.tick_seconds(shape, work) + self.host + self.host_row * work.rows

    def slice_seconds(self, shape: Bucket, layers: int, work: GroupWork) -> float:
        """Seconds of a group's part of a slice, and of the host before it."""
        return self.delays * self.slices.seconds(slice_work(layers, shape.rows, *work.sums)) + self.host

    def tick_seconds(self, shape: Bucket, work: GroupWork) -> float:
        """Median seconds of a group's part of a tick."""
        decoded = -(-work.context // self.decode_block) * self.decode_block
        seconds = self.base(shape) + self.decode * decoded + self.row * work.rows
        block, chunks = self.block, work.chunks
        for squares, read in chunks:
            seconds += self.attention * squares + self.context * (-(-read // block) * block)
        return seconds + self.beside if 0 < len(chunks) < work.rows else seconds

    def longer(self, shape: Bucket) -> float:
        """Seconds added to a tick of a shape at slowness 2."""
        return self.felt + self.felt_tokens * shape.rows

    def slowed(self, seconds: float, shape: Bucket, slowness: float) -> float:
        """Seconds at a slowness, where `seconds` are the `group_seconds` at slowness 1."""
        return seconds + (self.delays * self.longer(shape) + self.host_felt) * (slowness - 1)

    def predicted(self, tick: MeasuredTick) -> float:
        """Predicted median seconds of a measured tick, at its slowness."""
        return self.tick_seconds(tick.shape, tick.work) + self.longer(tick.shape) * (tick.slowness - 1)

    def seconds(self, work: TickWork) -> float:
        """Seconds of a tick, from the sums over its slowest group."""
        reading = self._reading(work.attention, work.rows)
        base = self._by_rows.get(work.tokens, self.fixed + self.tokens * work.tokens)
        return base + self.attention * work.attention + reading * work.context + self.row * work.rows

    def many(self, tokens: np.ndarray, attention: np.ndarray, context: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Seconds of many ticks; float64 arrays of one shape `[ticks]`."""
        every = zip(tokens.flat, attention.flat, context.flat, rows.flat, strict=True)
        seconds = [self.seconds(TickWork(int(t), a, c, int(r))) for t, a, c, r in every]
        return np.array(seconds).reshape(np.shape(tokens))

    def observe(self, work: TickWork, seconds: float) -> None:
        """Does nothing: the model is fixed."""

    def _reading(self, attention: float, rows: int) -> float:
        """Seconds per token of KV: if there is a prompt chunk, it counts as one of the n rows."""
        if not attention or not rows:
            return self.decode
        return (self.context + (rows - 1) * self.decode) / rows

    @cached_property
    def _by_rows(self) -> dict[int, float]:
        found: dict[int, float] = {}
        for shape in self.bases:
            found[shape.rows] = max(self.bases[shape], found.get(shape.rows, 0.0))
        return found
