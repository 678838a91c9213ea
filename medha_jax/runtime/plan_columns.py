"""A plan by columns, so that packing works on all of its chunks at once. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from medha_jax.plan import StepPlan
from medha_jax.specs.buckets import Segment


class ChunkSet(NamedTuple):
    """The chunks of a plan in one segment of a tick: a group's own ones, or those that all groups share.

    Args:
        decodes: places in the plan of the chunks of one token, in order.
        longer: places of the others, in order.
        segment: the rows that all need.
    """

    decodes: np.ndarray | slice = slice(0)
    longer: Sequence[int] = ()
    segment: Segment = Segment()


NOBODY = ChunkSet()
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class PlanColumns:
    """A plan and what packing needs of it, read once: a plan is packed again in every stage of the pipeline.

    The arrays are int64 `[chunks]`, in the order of the plan.

    Args:
        slot, start: as in `Chunk`.
        last: 1 for a chunk that is `last`.
        token: of a chunk of one token; -1: what was last sampled for its slot.
        paged: places of the chunks that bring pages.
        own: each group's own chunks, if it has any.
        shared: chunks that all groups share.
    """

    plan: StepPlan
    slot: np.ndarray
    start: np.ndarray
    last: np.ndarray
    token: np.ndarray
    paged: frozenset[int]
    own: Mapping[int, ChunkSet]
    shared: ChunkSet

    @classmethod
    def of(cls, plan: StepPlan) -> PlanColumns:
        """Read a plan."""
        if not plan.chunks:
            return cls(plan, *4 * (_NONE,), frozenset(), {}, NOBODY)
        slot, start, length, tokens, last, _, pages, groups = zip(*plan.chunks, strict=True)
        count = len(slot)
        token = np.full(count, -1)
        if tokens.count(None) != count:
            fed = [n for n, ids in enumerate(tokens) if ids is not None and length[n] == 1]
            token[fed] = [tokens[n][0] for n in fed]
        paged = [n for n, brought in enumerate(pages) if brought] if pages.count(()) != count else ()
        own, shared = _by_group(length, groups)
        return cls(
            plan=plan,
            slot=np.fromiter(slot, np.int64, count),
            start=np.fromiter(start, np.int64, count),
            last=np.fromiter(last, np.int64, count),
            token=token,
            paged=frozenset(paged),
            own=own,
            shared=shared,
        )

    @cached_property
    def need(self) -> tuple[Segment, Segment]:
        """Sizes that the plan needs of the own segment (over all groups) and of the shared segment."""
        own, *others = [chunks.segment for chunks in self.own.values()] or [Segment()]
        return Segment.holding([own, *others]) if others else own, self.shared.segment

    def decodes(self, chunks: ChunkSet) -> Sequence[int]:
        """The places of a set's decodes as Python's numbers."""
        places = chunks.decodes
        found: Sequence[int] = range(places.stop) if isinstance(places, slice) else places.tolist()
        return found


def _by_group(length: Sequence[int], groups: Sequence[tuple[int, ...]]) -> tuple[dict[int, ChunkSet], ChunkSet]:
    """The chunks of each group, and those that groups share."""
    first = groups[0]
    if len(first) == 1 and groups.count(first) == len(groups):  # as with one group: nothing to sort
        return {first[0]: _chunk_set(length, range(len(groups)))}, NOBODY
    own: dict[int, list[int]] = {}
    shared: list[int] = []
    for place, held in enumerate(groups):
        (shared if len(held) > 1 else own.setdefault(held[0], [])).append(place)
    return {group: _chunk_set(length, mine) for group, mine in own.items()}, _chunk_set(length, shared)


def _chunk_set(length: Sequence[int], places: Sequence[int]) -> ChunkSet:
    """The chunks at some places of a plan, with the lengths of all chunks."""
    if length.count(1) == len(length):
        decodes, longer = places, []
    else:
        decodes = [place for place in places if length[place] == 1]
        longer = [place for place in places if length[place] > 1]
    segment = Segment(len(decodes), sum([length[place] for place in longer]), len(longer))
    first = not decodes or decodes[-1] == len(decodes) - 1  # then a view does
    return ChunkSet(slice(len(decodes)) if first else np.array(decodes, np.int64), longer, segment)
