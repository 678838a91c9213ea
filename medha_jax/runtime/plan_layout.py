"""The layout of a tick's plan in one array."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jax import Array

from medha_jax.attention import PlanField, WorkLayout
from medha_jax.specs.buckets import Bucket

SLOT_FIELDS = ("row_slot", "sample_slot", "update_slot")


def tick_fields(bucket: Bucket, page: int) -> tuple[PlanField, ...]:
    """The fields that every plan has, for any attention implementation. `page` is in tokens.

    Padding in SLOT_FIELDS is a number beyond the slots, so writes to it are dropped. Other padding is 0.
    """
    rows, samples = (bucket.rows,), (bucket.samples,)
    updates = (sum(segment.updates(page) for segment in bucket.segments),)
    return (
        PlanField("row_token", rows, "Token id of each row; -1: the token that was last sampled for its slot."),
        PlanField("row_slot", rows, "Slot of each row."),
        PlanField("row_position", rows, "Position of each row in its request."),
        PlanField("sample_row", samples, "Row that each sample is drawn from: a decode, or the last one of a chunk."),
        PlanField("sample_slot", samples, "Slot of each sample."),
        PlanField("sample_keep", samples, "1 where the token is the request's next one; 0 where no one reads it."),
        PlanField("update_slot", updates, "Slot of each new entry of the page table."),
        PlanField("update_index", updates, "Place of the page among the slot's pages."),
        PlanField("update_page", updates, "The page."),
    )


@dataclass(frozen=True)
class PlanLayout:
    """Place of each field in one flat int32 array, so that a tick takes one small host array.

    `page` is in tokens. `work` adds the fields that attention needs for this shape.
    """

    bucket: Bucket
    page: int
    work: WorkLayout

    @cached_property
    def size(self) -> int:
        """Elements of the flat array."""
        return sum(math.prod(shape) for _, _, shape in self.places)

    @cached_property
    def places(self) -> tuple[tuple[str, slice, tuple[int, ...]], ...]:
        """Name, slice of the flat array, and shape of each field."""
        places, at = [], 0
        for field in (*tick_fields(self.bucket, self.page), *self.work.fields):
            places.append((field.name, slice(at, at := at + math.prod(field.shape)), field.shape))
        return tuple(places)

    def views(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """The fields as views of `flat`, to write into."""
        return {
            name: flat[place] if len(shape) == 1 else flat[place].reshape(shape) for name, place, shape in self.places
        }

    def fields(self, flat: Array) -> Mapping[str, Array]:
        """The fields as slices of `flat`, traced."""
        return {name: jnp.asarray(flat[place].reshape(shape)) for name, place, shape in self.places}
