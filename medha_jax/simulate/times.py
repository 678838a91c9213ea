"""What devices do in a tick, as the simulator sees it, and what says how long it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from medha_jax.scheduler.time_model import TickWork, TimeModel


class Shape(NamedTuple):
    """A compiled shape: rows that each group has of its own, and rows that all groups share; padding included."""

    own_decode: int
    own_prefill: int = 0
    shared_decode: int = 0
    shared_prefill: int = 0

    @property
    def shared_rows(self) -> int:
        """Rows that all groups compute."""
        return self.shared_decode + self.shared_prefill

    @property
    def rows(self) -> int:
        """All rows of a group."""
        return self.own_decode + self.own_prefill + self.shared_rows


@dataclass(slots=True)
class GroupWork:
    """What is in a group's part of a stage.

    Args:
        chunks: attention (tokens²) and KV read (tokens) of each prompt chunk, on this group.
        context: KV tokens that its decodes read.
        rows: real rows of one token, and prompt chunks: each is sampled once.
    """

    chunks: list[tuple[float, float]] = field(default_factory=list)
    context: float = 0.0
    rows: int = 0

    def __add__(self, other: GroupWork) -> GroupWork:
        """Both together."""
        return GroupWork(self.chunks + other.chunks, self.context + other.context, self.rows + other.rows)


def chunk_work(work: GroupWork, start: int, length: int, per_group: int) -> None:
    """Add a chunk to a group's work, as the group sees it that holds most of its context; one token is a decode."""
    end = start + length
    context = end if end <= per_group else per_group
    work.rows += 1
    if length == 1:
        work.context += context
    else:
        squares = length * per_group if end > per_group else length * (start + end + 1) / 2
        work.chunks.append((squares, context))


class GroupTimes(Protocol):
    """Says how long a group needs for its part of a tick."""

    def group_seconds(self, shape: Shape, work: GroupWork) -> float:
        """Seconds of work in a shape; a tick takes those of its slowest stage and group."""


@dataclass(frozen=True)
class SummedTimes:
    """Times by what the scheduler predicts with: sums over the chunks of a tick."""

    model: TimeModel

    def group_seconds(self, shape: Shape, work: GroupWork) -> float:
        """Seconds of work in a shape."""
        attention, context = 0.0, work.context
        for squares, read in work.chunks:
            attention += squares
            context += read
        return self.model.seconds(TickWork(shape.rows, attention, context, work.rows))
