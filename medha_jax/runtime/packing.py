"""Turn the plans in flight into the one int32 array that a tick takes. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medha_jax.attention import Launch, list_tiles, plan_items
from medha_jax.config import Buckets
from medha_jax.plan import Chunk, StepPlan
from medha_jax.runtime.plan_layout import plan_layout
from medha_jax.specs.buckets import NO_ROWS, SMALL_TILE, Bucket, Segment, smallest_bucket

EMPTY = StepPlan(())


@dataclass(frozen=True)
class Geometry:
    """Sizes that turn requests into rows: `page` and `per_group` in tokens; `shared` is None for one group.

    `launches` says how the attention kernels run each shape; shapes that XLA computes are not in it.
    """

    groups: int
    page: int
    per_group: int
    slots: int
    own: Buckets
    shared: Buckets | None
    launches: Mapping[Bucket, Launch] = field(default_factory=dict)


def chunks_of(plan: StepPlan, group: int | None) -> tuple[list[Chunk], list[Chunk]]:
    """Chunks of one token, which run as decode rows, and longer ones; of a group's own, or shared if None."""
    mine = [c for c in plan.chunks if (c.shared if group is None else not c.shared and c.groups[0] == group)]
    return [c for c in mine if c.length == 1], [c for c in mine if c.length > 1]


def needs(plan: StepPlan, groups: int) -> tuple[Segment, Segment]:
    """What the own segment (the largest group's) and the shared segment of a plan must hold."""

    def count(group: int | None) -> Segment:
        single, longer = chunks_of(plan, group)
        return Segment(len(single), sum(c.length for c in longer), len(longer))

    own = NO_ROWS
    for group in range(groups):
        own |= count(group)
    return own, count(None)


def bucket_for(plans: Sequence[StepPlan], geometry: Geometry) -> Bucket:
    """The smallest shape that holds every plan in flight.

    Raises:
        UnknownShapeError: none does.
    """
    own, shared = NO_ROWS, NO_ROWS
    for plan in plans:
        mine, common = needs(plan, geometry.groups)
        own, shared = own | mine, shared | common
    return smallest_bucket(geometry.own, geometry.shared, own, shared)


def pack(plans: Sequence[StepPlan], bucket: Bucket, geometry: Geometry) -> np.ndarray:
    """Lay out the plan of every stage for one shape: int32 `[stages, groups, PlanLayout.size]`.

    Padding has slot number `geometry.slots`: writes there are out of range and dropped.
    """
    launch = geometry.launches.get(bucket)
    layout = plan_layout(bucket, geometry.page, launch)
    packed = np.zeros((len(plans), geometry.groups, layout.size), np.int32)
    for stage, plan in enumerate(plans):
        for group in range(geometry.groups):
            view = {name: np.asarray(part) for name, part in layout.views(packed[stage, group]).items()}
            for name in ("row_slot", "sample_slot", "update_slot"):
                view[name][...] = geometry.slots
            writer = _Writer(view, bucket, geometry, group)
            if plan.chunks:
                writer.write(plan)
            if launch is not None:
                writer.write_work(plan, launch)
    return packed


def places(plan: StepPlan, bucket: Bucket) -> dict[int, tuple[int, int]]:
    """Where the results of a plan's chunks stand, by position in the plan: (group, sample)."""
    found: dict[int, tuple[int, int]] = {}
    number = {id(chunk): n for n, chunk in enumerate(plan.chunks)}
    groups: list[int | None] = [None, *sorted({c.groups[0] for c in plan.chunks if not c.shared})]
    for group in groups:
        segment = bucket.shared if group is None else bucket.own
        base = 0 if group is None else bucket.shared.samples
        single, longer = chunks_of(plan, group)
        for at, chunk in enumerate(single):
            found[number[id(chunk)]] = (group or 0, base + at)
        for at, chunk in enumerate(longer):
            found[number[id(chunk)]] = (group or 0, base + segment.decode + at)
    return found


@dataclass(frozen=True)
class _Writer:
    """Writes one plan as one group sees it into the views of the flat array."""

    view: dict[str, np.ndarray]
    bucket: Bucket
    geometry: Geometry
    group: int

    def write(self, plan: StepPlan) -> None:
        sample = 0
        for number, segment in enumerate(self.bucket.segments):
            single, longer = chunks_of(plan, None if number == 0 else self.group)
            row, prefill_row = self.bucket.starts(number)
            for at, chunk in enumerate(single):
                self._rows(chunk, row + at)
                self._decode(chunk, row + at)
                self._sample(chunk, sample + at, row + at)
            for at, chunk in enumerate(longer):
                self._rows(chunk, prefill_row)
                if self.bucket not in self.geometry.launches:
                    self._tiles(chunk, prefill_row)
                self._sample(chunk, sample + segment.decode + at, prefill_row + chunk.length - 1)
                prefill_row += chunk.length
            sample += segment.samples
        self._updates(plan)

    def _rows(self, chunk: Chunk, row: int) -> None:
        rows = slice(row, row + chunk.length)
        self.view["row_token"][rows] = -1 if chunk.tokens is None else chunk.tokens
        self.view["row_slot"][rows] = chunk.slot
        self.view["row_position"][rows] = np.arange(chunk.start, chunk.end)

    def _local(self, chunk: Chunk) -> tuple[int, int]:
        """Local position of the chunk's first token in this group, and tokens that the group then holds."""
        if self.group not in chunk.groups:
            return chunk.start, 0
        base = chunk.groups.index(self.group) * self.geometry.per_group
        return chunk.start - base, min(chunk.end - base, self.geometry.per_group)

    def _decode(self, chunk: Chunk, row: int) -> None:
        start, limit = self._local(chunk)
        self.view["decode_length"][row] = min(start + 1, limit)
        if chunk.groups[-1] == self.group:
            self.view["write_row"][int(self.view["writes"])] = row
            self.view["writes"][...] += 1

    def _sample(self, chunk: Chunk, sample: int, row: int) -> None:
        self.view["sample_row"][sample] = row
        self.view["sample_slot"][sample] = chunk.slot
        self.view["sample_keep"][sample] = chunk.last

    def _tiles(self, chunk: Chunk, row: int) -> None:
        segment = self.bucket.shared if chunk.shared else self.bucket.own
        sizes = tuple(segment.tiles)
        start, limit = self._local(chunk)
        owner = chunk.groups[-1] == self.group
        done = 0
        while done < chunk.length:
            left = chunk.length - done
            size = sizes[0] if left > sizes[0] // 2 or len(sizes) == 1 else SMALL_TILE
            at, count = int(self.view[f"tile{size}_used"]), min(size, left)
            entry = dict(slot=chunk.slot, row=row + done, start=start + done, count=count, limit=limit)
            for name, value in (*entry.items(), ("stored", count if owner else 0)):
                self.view[f"tile{size}_{name}"][at] = value
            self.view[f"tile{size}_used"][...] = at + 1
            done += count

    def _updates(self, plan: StepPlan) -> None:
        entries = [
            (chunk.slot, chunk.first_page + at, page)
            for chunk in plan.chunks
            if chunk.groups[-1] == self.group
            for at, page in enumerate(chunk.pages)
        ]
        for at, entry in enumerate(entries):
            for name, value in zip(("slot", "index", "page"), entry, strict=True):
                self.view[f"update_{name}"][at] = value

    def write_work(self, plan: StepPlan, launch: Launch) -> None:
        """Where rows are stored, and the work list of the attention kernels, which covers padding too."""
        stored = self.view["write_position"]
        stored[...] = -1
        chunks: list[tuple[int, ...]] = []
        for number, segment in enumerate(self.bucket.segments):
            single, longer = chunks_of(plan, None if number == 0 else self.group)
            row, prefill_row = self.bucket.starts(number)
            end = prefill_row + segment.prefill
            placed = [(row + at, chunk) for at, chunk in enumerate(single)]
            for chunk in longer:
                placed.append((prefill_row, chunk))
                chunks.append((prefill_row, chunk.length, chunk.slot, *self._local(chunk)))
                prefill_row += chunk.length
            chunks.append((prefill_row, end - prefill_row, 0, 0, 0))
            for at, chunk in placed:
                if chunk.groups[-1] == self.group:
                    start, _ = self._local(chunk)
                    stored[at : at + chunk.length] = np.arange(start, start + chunk.length)
        decodes = slice(0, self.bucket.decodes)
        lengths = self.view["decode_length"]
        tiles = list_tiles(launch, self.view["row_slot"][decodes], lengths, np.array(chunks, np.int64))
        self.view["item"][...], self.view["merge"][...] = plan_items(launch, tiles)
