"""Measured ticks of a machine, and times of a tick by coefficients that were fitted to them.

The model of a tick, whose numbers are all fitted:

    seconds = base[shape] + squares x attention + read x context + decoded x decode + rows x row + beside x mixed
              + (felt + felt_tokens x rows of the shape) x (slowness - 1)
    host_s  = host + rows x host_row + host_felt x (slowness - 1)

with squares, read and decoded of the slowest stage and group as in `GroupWork`; `mixed` is 1 where decodes run beside
prompts, and 0 elsewhere. A slow machine adds the same to every tick of a shape: those with a prompt chunk were seen to
grow by more milliseconds than those of decodes, and by a smaller share (docs/simulation.md).

Programs read KV in blocks: read is rounded up to a multiple of `block` for each chunk, and decoded to one of
`decode_block`; the sizes are those of `BLOCKS` that fit best. A robust fit with a base that is
linear in rows comes first; then each shape that has ticks enough gets a base of its own, the median of what is left.

That predicts the median of ticks that do the same. Some take longer, because somebody else had the processor, and
requests wait for these as well: `delays` is the mean of measured over predicted seconds, and simulated ticks take so
many times their median. The host's time is a mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from medha_jax.scheduler.time_model import TickWork
from medha_jax.simulate.times import GroupWork
from medha_jax.specs.buckets import Bucket

SHORT_CONTEXT = 1024


@dataclass(frozen=True)
class MeasuredTick:
    """A measured tick: the shape that it ran in, its slowest group's work, its seconds, and the host's before it.

    `slowness` is that of the machine at that time, as measured by something else.
    """

    shape: Bucket
    work: GroupWork
    seconds: float
    host_s: float | None = None
    slowness: float = 1.0

    @property
    def regime(self) -> str:
        """What kind of tick it is, for reporting errors."""
        if not self.work.chunks:
            return "decodes alone"
        if self.work.rows > len(self.work.chunks):
            return "prompts beside decodes"
        longest = max(read for _, read in self.work.chunks)
        return f"prompts, up to {SHORT_CONTEXT:,} tokens" if longest <= SHORT_CONTEXT else "prompts, longer"


@dataclass(frozen=True)
class MeasuredTimes:
    """Times of a tick by measured coefficients; a time model for the scheduler and for the devices.

    Args:
        fixed, tokens: base of a shape without one of its own: seconds, and seconds a row of the shape.
        attention: seconds a prompt row and token of its context.
        context: seconds a token of KV that prompt chunks read.
        decode: seconds a token of KV that decodes read.
        row: seconds a real row.
        beside: seconds of decodes that run beside prompts.
        bases: seconds of shapes that were measured often enough.
        block, decode_block: tokens that are read at once, by prompt chunks and by decodes.
        delays: mean of measured over predicted seconds; the scheduler does not predict it.
        felt, felt_tokens: of ticks on a machine that is twice as slow: seconds longer, and seconds a row of the shape.
        host, host_row: of the host between ticks: seconds, and seconds a real row. The scheduler does not predict them.
        host_felt: seconds that the host takes longer on a machine that is twice as slow.
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

    def base(self, shape: Bucket) -> float:
        """Seconds of a shape without anything in it."""
        known = self.bases.get(shape)
        return self.fixed + self.tokens * shape.rows if known is None else known

    def group_seconds(self, shape: Bucket, work: GroupWork) -> float:
        """Seconds of a group's part of a tick, and of the host before it."""
        return self.delays * self.tick_seconds(shape, work) + self.host + self.host_row * work.rows

    def tick_seconds(self, shape: Bucket, work: GroupWork) -> float:
        """Seconds of a group's part of a tick, the median."""
        decoded = -(-work.context // self.decode_block) * self.decode_block
        seconds = self.base(shape) + self.decode * decoded + self.row * work.rows
        block, chunks = self.block, work.chunks
        for squares, read in chunks:
            seconds += self.attention * squares + self.context * (-(-read // block) * block)
        return seconds + self.beside if 0 < len(chunks) < work.rows else seconds

    def longer(self, shape: Bucket) -> float:
        """Seconds that a tick of a shape takes longer on a machine that is twice as slow."""
        return self.felt + self.felt_tokens * shape.rows

    def slowed(self, seconds: float, shape: Bucket, slowness: float) -> float:
        """Seconds on a machine that is so slow of what takes `group_seconds` at its best, where slowness is 1."""
        return seconds + (self.delays * self.longer(shape) + self.host_felt) * (slowness - 1)

    def predicted(self, tick: MeasuredTick) -> float:
        """Seconds of a measured tick, the median of its like."""
        return self.tick_seconds(tick.shape, tick.work) + self.longer(tick.shape) * (tick.slowness - 1)

    def seconds(self, work: TickWork) -> float:
        """Seconds of a tick, of sums over its slowest group."""
        reading = self._reading(work.attention, work.rows)
        base = self._by_rows.get(work.tokens, self.fixed + self.tokens * work.tokens)
        return base + self.attention * work.attention + reading * work.context + self.row * work.rows

    def many(self, tokens: np.ndarray, attention: np.ndarray, context: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Seconds of many ticks; float64 arrays of one shape `[ticks]`."""
        every = zip(tokens.flat, attention.flat, context.flat, rows.flat, strict=True)
        seconds = [self.seconds(TickWork(int(t), a, c, int(r))) for t, a, c, r in every]
        return np.array(seconds).reshape(np.shape(tokens))

    def observe(self, work: TickWork, seconds: float) -> None:
        """Fixed: nothing is learnt."""

    def _reading(self, attention: float, rows: int) -> float:
        """Seconds a token of KV: of n rows one is taken for the prompt chunk, if there is any."""
        if not attention or not rows:
            return self.decode
        return (self.context + (rows - 1) * self.decode) / rows

    @cached_property
    def _by_rows(self) -> dict[int, float]:
        found: dict[int, float] = {}
        for shape in self.bases:
            found[shape.rows] = max(self.bases[shape], found.get(shape.rows, 0.0))
        return found
