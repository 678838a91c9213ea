"""Pack the plans in flight into the single int32 array that a tick takes. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medha_jax.attention import RowRun
from medha_jax.config import Buckets
from medha_jax.plan import Chunk, StepPlan
from medha_jax.runtime.plan_layout import SLOT_FIELDS, PlanLayout
from medha_jax.specs.buckets import Bucket, Segment, UnknownShapeError, smallest_bucket, smallest_slice

EMPTY = StepPlan(())


@dataclass(frozen=True)
class Geometry:
    """Sizes that packing needs. `page` and `per_group` are in tokens; `shared` is None for one group."""

    groups: int
    page: int
    per_group: int
    slots: int
    own: Buckets
    shared: Buckets | None


def chunks_of(plan: StepPlan, group: int | None) -> tuple[list[Chunk], list[Chunk]]:
    """A group's own chunks (the shared ones if `group` is None): decodes of one token, then longer chunks."""
    mine = [c for c in plan.chunks if (c.shared if group is None else not c.shared and c.groups[0] == group)]
    return [c for c in mine if c.length == 1], [c for c in mine if c.length > 1]


def needs(plan: StepPlan, groups: int) -> tuple[Segment, Segment]:
    """Sizes that a plan needs of the own segment (over all groups) and of the shared segment."""

    def count(group: int | None) -> Segment:
        single, longer = chunks_of(plan, group)
        return Segment(len(single), sum(c.length for c in longer), len(longer))

    return Segment.holding([count(group) for group in range(groups)]), count(None)


def bucket_for(plans: Sequence[StepPlan], geometry: Geometry) -> Bucket:
    """The smallest shape that holds every plan in flight. Raises UnknownShapeError if there is none."""
    own, shared = zip(*(needs(plan, geometry.groups) for plan in plans), strict=True)
    return smallest_bucket(geometry.own, geometry.shared, Segment.holding(own), Segment.holding(shared))


def slice_bucket_for(stages: Sequence[StepPlan], geometry: Geometry) -> Bucket:
    """The smallest shape of a slice that holds the chunks of every stage.

    Raises:
        UnknownShapeError: there is none; no stage has a chunk; or one has two of a group, or a chunk of one token.
    """
    needed = [needs(plan, geometry.groups) for plan in stages]
    own, shared = (Segment.holding(sizes) for sizes in zip(*needed, strict=True))
    if max(own.decode, shared.decode) or max(own.chunks, shared.chunks) != 1:
        raise UnknownShapeError(
            "a slice has chunks of at least two tokens: for each stage at most one of a group and one that groups share"
        )
    return smallest_slice(geometry.own, geometry.shared, own.prefill, shared.prefill)


def pack(plans: Sequence[StepPlan], layout: PlanLayout, geometry: Geometry) -> np.ndarray:
    """Pack the plan of every stage for one shape: int32 `[stages, groups, PlanLayout.size]`."""
    packed = np.zeros((len(plans), geometry.groups, layout.size), np.int32)
    for stage, plan in enumerate(plans):
        for group in range(geometry.groups):
            view = layout.views(packed[stage, group])
            for name in SLOT_FIELDS:
                view[name].fill(geometry.slots)
            runs = _Writer(view, layout.bucket, geometry, group).write(plan) if plan.chunks else []
            layout.work.write(view, runs)
    return packed


def placed(plan: StepPlan, bucket: Bucket, group: int) -> Iterator[tuple[Chunk, int, int]]:
    """Every chunk that a group runs, with its first row and its sample index; decodes first."""
    longer: list[tuple[Chunk, int, int]] = []
    sample = 0
    for number, segment in enumerate(bucket.segments):
        single, several = chunks_of(plan, None if number == 0 else group)
        row, prompt_row = bucket.starts(number)
        for at, chunk in enumerate(single):
            yield chunk, row + at, sample + at
        for at, chunk in enumerate(several):
            longer.append((chunk, prompt_row, sample + segment.decode + at))
            prompt_row += chunk.length
        sample += segment.samples
    yield from longer


def places(plan: StepPlan, bucket: Bucket) -> dict[int, tuple[int, int]]:
    """Place (group, sample) of each chunk's result, by position in the plan. Shared chunks are read from group 0."""
    number = {id(chunk): n for n, chunk in enumerate(plan.chunks)}
    found: dict[int, tuple[int, int]] = {}
    for group in sorted({0 if chunk.shared else chunk.groups[0] for chunk in plan.chunks}):
        for chunk, _, sample in placed(plan, bucket, group):
            found[number[id(chunk)]] = (0 if chunk.shared else group, sample)
    return found


class _Writer:
    """Writes one plan, as one group sees it, into views of the flat array."""

    def __init__(self, view: dict[str, np.ndarray], bucket: Bucket, geometry: Geometry, group: int) -> None:
        self._view, self._bucket, self._geometry, self._group = view, bucket, geometry, group

    def write(self, plan: StepPlan) -> list[RowRun]:
        """Fill in the fields of `tick_fields`; returns the plan's runs of rows."""
        found = list(placed(plan, self._bucket, self._group))
        self._rows(found)
        self._samples(found)
        self._updates([chunk for chunk, _, _ in found if chunk.pages and chunk.groups[-1] == self._group])
        return [self._run(chunk, row) for chunk, row, _ in found]

    def _rows(self, found: Sequence[tuple[Chunk, int, int]]) -> None:
        token, slot, position = (self._view[name] for name in ("row_token", "row_slot", "row_position"))
        single = [(chunk, row) for chunk, row, _ in found if chunk.length == 1]
        if single:  # vectorised, because a tick can have many decodes
            rows = [row for _, row in single]
            token[rows] = [-1 if chunk.tokens is None else chunk.tokens[0] for chunk, _ in single]
            slot[rows] = [chunk.slot for chunk, _ in single]
            position[rows] = [chunk.start for chunk, _ in single]
        for chunk, row, _ in found[len(single) :]:
            past = row + chunk.length
            token[row:past] = -1 if chunk.tokens is None else chunk.tokens
            slot[row:past] = chunk.slot
            position[row:past] = np.arange(chunk.start, chunk.end)

    def _samples(self, found: Sequence[tuple[Chunk, int, int]]) -> None:
        samples = [sample for _, _, sample in found]
        self._view["sample_row"][samples] = [row + chunk.length - 1 for chunk, row, _ in found]
        self._view["sample_slot"][samples] = [chunk.slot for chunk, _, _ in found]
        self._view["sample_keep"][samples] = [chunk.last for chunk, _, _ in found]

    def _updates(self, chunks: Sequence[Chunk]) -> None:
        """Write new page table entries for chunks that bring pages of this group."""
        entries = [(c.slot, c.first_page + at, page) for c in chunks for at, page in enumerate(c.pages)]
        for name, column in zip(("slot", "index", "page"), zip(*entries, strict=True), strict=False):
            self._view[f"update_{name}"][: len(entries)] = column

    def _run(self, chunk: Chunk, row: int) -> RowRun:
        """The rows of a chunk, with positions local to this group's part of the request."""
        start, limit, groups, per_group = chunk.start, 0, chunk.groups, self._geometry.per_group
        if self._group in groups:
            base = groups.index(self._group) * per_group
            start, limit = start - base, min(chunk.end - base, per_group)
        return RowRun(row, chunk.length, chunk.slot, start, limit, groups[-1] == self._group, len(groups) > 1)
