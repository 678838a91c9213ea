"""Pack the plans in flight into the single int32 array that a tick takes. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medha_jax.attention import RowRun, TickRows
from medha_jax.config import Buckets
from medha_jax.plan import Chunk, StepPlan
from medha_jax.runtime.plan_columns import NOBODY, ChunkSet, PlanColumns
from medha_jax.runtime.plan_layout import SLOT_FIELDS, PlanLayout
from medha_jax.specs.buckets import Bucket, Segment, UnknownShapeError, smallest_bucket, smallest_slice
from medha_jax.token_ids import array_of

EMPTY = StepPlan(())
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Geometry:
    """Sizes that packing needs. `page` and `per_group` are in tokens; `shared` is None for one group."""

    groups: int
    page: int
    per_group: int
    slots: int
    own: Buckets
    shared: Buckets | None


def bucket_for(plans: Sequence[PlanColumns], geometry: Geometry) -> Bucket:
    """The smallest shape that holds every plan in flight. Raises UnknownShapeError if there is none."""
    return smallest_bucket(geometry.own, geometry.shared, *_needed(plans))


def slice_bucket_for(stages: Sequence[PlanColumns], geometry: Geometry) -> Bucket:
    """The smallest shape of a slice that holds the chunks of every stage.

    Raises:
        UnknownShapeError: there is none; no stage has a chunk; or one has two of a group, or a chunk of one token.
    """
    own, shared = _needed(stages)
    if max(own.decode, shared.decode) or max(own.chunks, shared.chunks) != 1:
        raise UnknownShapeError(
            "a slice has chunks of at least two tokens: for each stage at most one of a group and one that groups share"
        )
    return smallest_slice(geometry.own, geometry.shared, own.prefill, shared.prefill)


def _needed(plans: Sequence[PlanColumns]) -> tuple[Segment, Segment]:
    if len(plans) == 1:
        return plans[0].need
    own, shared = zip(*(plan.need for plan in plans), strict=True)
    return Segment.holding(own), Segment.holding(shared)


def pack(plans: Sequence[PlanColumns], layout: PlanLayout, geometry: Geometry) -> np.ndarray:
    """Pack the plan of every stage for one shape: int32 `[stages, groups, PlanLayout.size]`."""
    packed = np.zeros((len(plans), geometry.groups, layout.size), np.int32)
    for stage, plan in enumerate(plans):
        for group in range(geometry.groups):
            view = layout.views(packed[stage, group])
            for name in SLOT_FIELDS:
                view[name].fill(geometry.slots)
            layout.work.write(view, _write(view, plan, layout.bucket, geometry, group))
    return packed


def places(plan: PlanColumns, bucket: Bucket) -> tuple[list[int], list[int]]:
    """Where each chunk's result is: its group, and its sample there. Shared chunks are read from group 0."""
    groups, samples = [0] * len(plan.plan.chunks), [0] * len(plan.plan.chunks)
    for group, mine in ((0, plan.shared), *plan.own.items()):
        first, decode = (0, bucket.shared.decode) if mine is plan.shared else (bucket.shared.samples, bucket.own.decode)
        if isinstance(mine.decodes, slice):
            samples[mine.decodes] = range(first, first + mine.segment.decode)
        else:
            for sample, place in enumerate(mine.decodes.tolist(), first):
                samples[place] = sample
        for sample, place in enumerate(mine.longer, first + decode):
            samples[place] = sample
        if group:
            for place in (*plan.decodes(mine), *mine.longer):
                groups[place] = group
    return groups, samples


def first_rows(plan: PlanColumns, bucket: Bucket) -> tuple[list[int], list[int]]:
    """Where each chunk's rows are: its group, and its first row there. Shared chunks are read from group 0."""
    groups, rows = places(plan, bucket)[0], [0] * len(plan.plan.chunks)
    for number, sets in enumerate(((plan.shared,), plan.own.values())):
        for mine in sets:
            row, prompt_row = bucket.starts(number)
            for at, place in enumerate(plan.decodes(mine), row):
                rows[place] = at
            for place in mine.longer:
                rows[place] = prompt_row
                prompt_row += plan.plan.chunks[place].length
    return groups, rows


def _write(
    view: Mapping[str, np.ndarray], plan: PlanColumns, bucket: Bucket, geometry: Geometry, group: int
) -> TickRows:
    """Write the fields of `tick_fields` as one group sees them; returns the plan's rows."""
    segments = plan.shared, plan.own.get(group, NOBODY)
    decodes, longer = [], list[RowRun]()
    for number, chunks in enumerate(segments):
        row, prompt_row = bucket.starts(number)
        sample = number * bucket.shared.samples
        if chunks.segment.decode:
            decodes.append(_decodes(view, plan, chunks, row, sample))
            if chunks is plan.shared:
                decodes[-1] = _local(decodes[-1], plan, chunks, geometry, group)
        for at, place in enumerate(chunks.longer, sample + bucket.segments[number].decode):
            longer.append(_longer(view, plan.plan.chunks[place], prompt_row, at, geometry, group))
            prompt_row += longer[-1].length
    if plan.paged:
        _updates(view, plan, segments, group)
    if not decodes:
        return TickRows(_NONE, _NONE, _NONE, _NONE, _NONE, longer)
    if len(decodes) == 1:
        return decodes[0]._replace(longer=longer) if longer else decodes[0]
    shared, own = decodes

    def both(name: str) -> np.ndarray:
        return np.concatenate([getattr(shared, name), getattr(own, name)])

    stored = np.concatenate([shared.stored, len(shared.row) + np.arange(len(own.row))])
    return TickRows(both("row"), both("slot"), both("start"), both("seen"), stored, longer)


def _decodes(view: Mapping[str, np.ndarray], plan: PlanColumns, chunks: ChunkSet, row: int, sample: int) -> TickRows:
    """Write the decodes of a segment, all at once because there can be many, from its first row and sample on."""
    places, count = chunks.decodes, chunks.segment.decode
    slot, start = plan.slot[places], plan.start[places]
    rows, samples = slice(row, row + count), slice(sample, sample + count)
    view["row_token"][rows], view["row_slot"][rows], view["row_position"][rows] = plan.token[places], slot, start
    of = np.arange(row, row + count)
    view["sample_row"][samples], view["sample_slot"][samples] = of, slot
    view["sample_keep"][samples] = plan.last[places]
    return TickRows(of, slot, start, start + 1, slice(None))


def _longer(
    view: Mapping[str, np.ndarray], chunk: Chunk, row: int, sample: int, geometry: Geometry, group: int
) -> RowRun:
    """Write a chunk of several tokens from its first row on."""
    rows = slice(row, row + chunk.length)
    view["row_token"][rows] = -1 if chunk.tokens is None else array_of(chunk.tokens)
    view["row_slot"][rows] = chunk.slot
    view["row_position"][rows] = np.arange(chunk.start, chunk.end)
    view["sample_row"][sample], view["sample_slot"][sample] = rows.stop - 1, chunk.slot
    view["sample_keep"][sample] = chunk.last
    start, limit, owner = _part(chunk, geometry.per_group, group)
    return RowRun(row, chunk.length, chunk.slot, start, limit, owner, chunk.shared)


def _updates(view: Mapping[str, np.ndarray], plan: PlanColumns, segments: Sequence[ChunkSet], group: int) -> None:
    """Write new page table entries for the chunks that bring pages of this group, decodes first."""
    slot, index, page = (view[f"update_{name}"] for name in ("slot", "index", "page"))

    def brought(places: Iterable[int]) -> list[Chunk]:
        mine = [plan.plan.chunks[place] for place in places if place in plan.paged]
        return [chunk for chunk in mine if chunk.groups[-1] == group]

    past = 0
    if single := brought(place for chunks in segments for place in plan.decodes(chunks)):
        entries = [(c.slot, c.first_page + at, one) for c in single for at, one in enumerate(c.pages)]
        past = len(entries)
        slot[:past], index[:past], page[:past] = zip(*entries, strict=True)
    for chunk in brought(place for chunks in segments for place in chunks.longer):
        first, past = past, past + len(chunk.pages)
        slot[first:past], page[first:past] = chunk.slot, chunk.pages
        index[first:past] = np.arange(chunk.first_page, chunk.first_page + len(chunk.pages))


def _local(rows: TickRows, plan: PlanColumns, chunks: ChunkSet, geometry: Geometry, group: int) -> TickRows:
    """The rows of shared decodes, with positions local to this group's part of their requests."""
    parts = [_part(plan.plan.chunks[place], geometry.per_group, group) for place in plan.decodes(chunks)]
    start, limit, owner = (np.array(column) for column in zip(*parts, strict=True))
    return rows._replace(start=start, seen=np.minimum(start + 1, limit), stored=np.flatnonzero(owner))


def _part(chunk: Chunk, per_group: int, group: int) -> tuple[int, int, bool]:
    """Start and limit of a chunk as in `RowRun`, and whether this group stores it."""
    if group not in chunk.groups:
        return chunk.start, 0, False
    base = chunk.groups.index(group) * per_group
    return chunk.start - base, min(chunk.end - base, per_group), chunk.groups[-1] == group
