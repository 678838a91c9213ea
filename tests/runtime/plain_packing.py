"""Packing in plain form, chunk by chunk: what `runtime.packing` and the work lists must equal, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from medha_jax.attention.gpu.fields import ItemLayout
from medha_jax.attention.interface import FieldViews, RowRun
from medha_jax.attention.work_list import TILE_FIELDS, TileLayout
from medha_jax.plan import Chunk, StepPlan
from medha_jax.runtime.packing import Geometry
from medha_jax.runtime.plan_layout import SLOT_FIELDS, PlanLayout
from medha_jax.specs.buckets import SMALL_TILE, Bucket
from tests.attention.plain_items import list_tiles, plan_items


def chunks_of(plan: StepPlan, group: int | None) -> tuple[list[Chunk], list[Chunk]]:
    """A group's own chunks (the shared ones if `group` is None): decodes of one token, then longer chunks."""
    mine = [c for c in plan.chunks if (c.shared if group is None else not c.shared and c.groups[0] == group)]
    return [c for c in mine if c.length == 1], [c for c in mine if c.length > 1]


def plain_pack(plans: Sequence[StepPlan], layout: PlanLayout, geometry: Geometry) -> np.ndarray:
    """Pack the plan of every stage for one shape: int32 `[stages, groups, PlanLayout.size]`."""
    packed = np.zeros((len(plans), geometry.groups, layout.size), np.int32)
    for stage, plan in enumerate(plans):
        for group in range(geometry.groups):
            view = layout.views(packed[stage, group])
            for name in SLOT_FIELDS:
                view[name].fill(geometry.slots)
            runs = _Writer(view, layout.bucket, geometry, group).write(plan) if plan.chunks else []
            if isinstance(layout.work, ItemLayout):
                write_items(layout.work, view, runs)
            else:
                assert isinstance(layout.work, TileLayout)
                write_tiles(layout.work, view, runs)
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


def plain_places(plan: StepPlan, bucket: Bucket) -> dict[int, tuple[int, int]]:
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


def write_tiles(layout: TileLayout, view: FieldViews, runs: Sequence[RowRun]) -> None:
    """Write the lengths and stored rows of decodes, and cut longer runs into tiles."""
    decodes = [run for run in runs if run.row < layout.bucket.decodes]
    if decodes:
        lengths = [min(run.start + 1, run.limit) for run in decodes]
        view["decode_length"][[run.row for run in decodes]] = lengths
        stored = [run.row for run in decodes if run.owner]
        view["write_row"][: len(stored)] = stored
        view["writes"][...] = len(stored)
    if len(decodes) == len(runs):
        return
    made: dict[int, list[tuple[int, ...]]] = {size: [] for size in layout.tiles}
    for run in runs:
        if run.row >= layout.bucket.decodes:
            for size, tile in _cut(layout, run):
                made[size].append(tile)
    for size, tiles in made.items():
        view[f"tile{size}_used"][...] = len(tiles)
        for name, column in zip(TILE_FIELDS, zip(*tiles, strict=True), strict=False):  # no columns without tiles
            view[f"tile{size}_{name}"][: len(tiles)] = column


def _cut(layout: TileLayout, run: RowRun) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The tiles of a run: the size and TILE_FIELDS of each."""
    sizes = tuple((layout.bucket.shared if run.shared else layout.bucket.own).tiles)
    done = 0
    while done < run.length:
        left = run.length - done
        size = sizes[0] if left > sizes[0] // 2 or len(sizes) == 1 else SMALL_TILE
        count = min(size, left)
        stored = count if run.owner else 0
        yield size, (run.slot, run.row + done, run.start + done, count, run.limit, stored)
        done += count


def write_items(layout: ItemLayout, view: FieldViews, runs: Sequence[RowRun]) -> None:
    """Write the places of stored rows, and the work list, which covers padding rows too."""
    bucket, position = layout.bucket, view["write_position"]
    slots, lengths = np.zeros((2, bucket.decodes), np.int32)
    position[...] = -1
    prompts: tuple[list[tuple[int, ...]], ...] = ([], [])  # own segment, shared segment
    for run in runs:
        if run.row < bucket.decodes:
            slots[run.row], lengths[run.row] = run.slot, min(run.start + 1, run.limit)
        else:
            prompts[run.shared].append(run[:5])
        if run.owner:
            position[run.row : run.row + run.length] = np.arange(run.start, run.start + run.length)
    chunks: list[tuple[int, ...]] = []
    for number, segment in enumerate(bucket.segments):
        mine = prompts[1 - number]
        used = sum(count for _, count, *_ in mine)
        chunks += [*mine, (bucket.starts(number)[1] + used, segment.prefill - used, 0, 0, 0)]
    tiles = list_tiles(layout.launch, slots, lengths, np.array(chunks, np.int64))
    view["item"][...], view["merge"][...] = plan_items(layout.launch, tiles)
