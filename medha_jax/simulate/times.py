"""The simulated work of a tick or slice, and the interface that gives its seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from medha_jax.scheduler.time_model import TickWork, TimeModel, slice_work
from medha_jax.specs.buckets import Bucket, Segment
from medha_jax.specs.chunk_work import chunk_attention, chunk_read


@dataclass(slots=True)
class GroupWork:
    """Work of a group in one stage.

    Args:
        chunks: attention (tokens²) and KV read (tokens) of each prompt chunk, on this group.
        context: KV tokens that its decodes read.
        rows: decode rows and prompt chunks: each is sampled once.
        tokens: of all prompt chunks.
    """

    chunks: list[tuple[float, float]] = field(default_factory=list)
    context: float = 0.0
    rows: int = 0
    tokens: int = 0

    @property
    def segment(self) -> Segment:
        """The segment that holds this work."""
        chunks = len(self.chunks)
        return Segment(self.rows - chunks, self.tokens, chunks)

    @property
    def sums(self) -> tuple[float, float]:
        """Attention of prompt chunks, and KV that chunks and decodes read."""
        attention, context = 0.0, self.context
        for squares, read in self.chunks:
            attention += squares
            context += read
        return attention, context

    def __add__(self, other: GroupWork) -> GroupWork:
        return GroupWork(
            self.chunks + other.chunks,
            self.context + other.context,
            self.rows + other.rows,
            self.tokens + other.tokens,
        )

    def add(self, start: int, length: int, per_group: int) -> None:
        """Add a chunk, as seen by the group that holds most of its context; one token is a decode."""
        read = chunk_read(start + length, per_group)
        self.rows += 1
        if length == 1:
            self.context += read
        else:
            self.tokens += length
            self.chunks.append((chunk_attention(start, length, per_group), read))


class GroupTimes(Protocol):
    """Gives the seconds of a group's part of a tick or slice."""

    def group_seconds(self, shape: Bucket, work: GroupWork) -> float:
        """Seconds of work in a shape; a tick takes those of its slowest stage and group."""

    def slice_seconds(self, shape: Bucket, layers: int, work: GroupWork) -> float:
        """Seconds of work in a shape of slices, for so many layers of a stage."""


@dataclass(frozen=True)
class SummedTimes:
    """Times from the scheduler's model, which takes sums over the chunks of a tick or slice."""

    model: TimeModel

    def group_seconds(self, shape: Bucket, work: GroupWork) -> float:
        """Seconds of work in a shape."""
        return self.model.seconds(TickWork(shape.rows, *work.sums, work.rows))

    def slice_seconds(self, shape: Bucket, layers: int, work: GroupWork) -> float:
        """Seconds of work in a shape of slices."""
        return self.model.slices.seconds(slice_work(layers, shape.rows, *work.sums))
