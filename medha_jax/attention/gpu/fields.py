"""The kernels' fields of a plan: a work list made on the host, and the place where each row is stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import jax
import numpy as np
from jaxtyping import Array, Int

from medha_jax.attention.gpu.items import ITEM_FIELDS, MERGE_FIELDS, list_tiles, write_items
from medha_jax.attention.gpu.launch import Launch
from medha_jax.attention.interface import Fields, FieldViews, PlanField, TickRows
from medha_jax.specs.buckets import Bucket


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KernelWork:
    """The attention and KV writes of a tick, as `items.plan_items` lists them.

    Each row's keys and values go to `slot` at `position`, which is local to the group; -1 means not stored here.
    """

    items: Int[Array, "items fields"]
    merges: Int[Array, "merges fields"]
    slot: Int[Array, " rows"]
    position: Int[Array, " rows"]
    launch: Launch = field(metadata={"static": True})


@dataclass(frozen=True)
class ItemLayout:
    """The plan fields that the kernels need for one shape."""

    bucket: Bucket
    launch: Launch

    @cached_property
    def fields(self) -> tuple[PlanField, ...]:
        """The places where rows are stored, then the work list."""
        items, merges = (self.launch.items, len(ITEM_FIELDS)), (self.launch.merges, len(MERGE_FIELDS))
        return (
            PlanField("write_position", (self.bucket.rows,), "Local position that a row is stored at; -1: nowhere."),
            PlanField("item", items, "The work list: ITEM_FIELDS of each part of a tile; a count of 0 is padding."),
            PlanField("merge", merges, "Tiles that were cut: MERGE_FIELDS of each; a count of 0 is padding."),
        )

    def write(self, view: FieldViews, rows: TickRows) -> None:
        """Write the places of stored rows, and the work list, which covers padding rows too."""
        bucket, position = self.bucket, view["write_position"]
        slots, lengths = np.zeros((2, bucket.decodes), np.int64)
        slots[rows.row], lengths[rows.row] = rows.slot, rows.seen
        position.fill(-1)
        position[rows.row[rows.stored]] = rows.start[rows.stored]
        prompts: tuple[list[tuple[int, ...]], ...] = ([], [])  # own segment, shared segment
        for run in rows.longer:
            prompts[run.shared].append(run[:5])
            if run.owner:
                position[run.row : run.row + run.length] = np.arange(run.start, run.start + run.length)
        chunks: list[tuple[int, ...]] = []
        for number, segment in enumerate(bucket.segments):
            if segment.prefill:
                mine = prompts[1 - number]
                used = sum(count for _, count, *_ in mine)
                chunks += [*mine, (bucket.starts(number)[1] + used, segment.prefill - used, 0, 0, 0)]
        tiles = list_tiles(self.launch, slots, lengths, np.array(chunks, np.int64))
        write_items(self.launch, tiles, view["item"], view["merge"])

    def work(self, fields: Fields) -> KernelWork:
        """The kernels' view of a plan, traced."""
        return KernelWork(fields["item"], fields["merge"], fields["row_slot"], fields["write_position"], self.launch)
