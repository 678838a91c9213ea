"""How the plan of a tick is laid out in one array."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jax import Array

from medha_jax.attention import Launch
from medha_jax.attention.gpu.items import FIELDS, MERGE_FIELDS
from medha_jax.specs.buckets import Bucket


@dataclass(frozen=True)
class PlanLayout:
    """Where each field of a plan lies in one flat int32 array, so that a tick takes one small host array.

    `launch` is how the attention kernels run this shape, None where XLA computes it.
    """

    bucket: Bucket
    page: int
    launch: Launch | None = None

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each field, in order."""
        b = self.bucket
        updates = sum(segment.updates(self.page) for segment in b.segments)
        shapes: dict[str, tuple[int, ...]] = {
            "row_token": (b.rows,),
            "row_slot": (b.rows,),
            "row_position": (b.rows,),
            "decode_length": (b.decodes,),
            "writes": (),
            "write_row": (b.decodes,),
            "sample_row": (b.samples,),
            "sample_slot": (b.samples,),
            "sample_keep": (b.samples,),
            "update_slot": (updates,),
            "update_index": (updates,),
            "update_page": (updates,),
        }
        if self.launch is not None:
            work = {"item": (self.launch.items, len(FIELDS)), "merge": (self.launch.merges, len(MERGE_FIELDS))}
            return {**shapes, "write_position": (b.rows,), **work}
        for size, count in b.tiles.items():
            shapes[f"tile{size}_used"] = ()
            for name in ("slot", "row", "start", "count", "limit", "stored"):
                shapes[f"tile{size}_{name}"] = (count,)
        return shapes

    @cached_property
    def size(self) -> int:
        """Elements of the flat array."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @cached_property
    def fields(self) -> tuple[tuple[str, slice, tuple[int, ...]], ...]:
        """Name, place in the flat array, and shape of each field."""
        fields, at = [], 0
        for name, shape in self.shapes.items():
            fields.append((name, slice(at, at := at + math.prod(shape)), shape))
        return tuple(fields)

    def views(self, flat: np.ndarray | Array) -> dict[str, np.ndarray | Array]:
        """The fields as views (NumPy) or slices (traced) of `flat`."""
        return {name: flat[place].reshape(shape) for name, place, shape in self.fields}


@lru_cache(maxsize=256)
def plan_layout(bucket: Bucket, page: int, launch: Launch | None = None) -> PlanLayout:
    """The layout of a shape; kept, because every tick asks for one."""
    return PlanLayout(bucket, page, launch)
