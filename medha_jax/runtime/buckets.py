"""The padded shapes of a tick and how a plan is laid out in one array of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jax import Array

from medha_jax.config import Buckets

LARGE_TILE, SMALL_TILE = 512, 64


@dataclass(frozen=True, order=True)
class Bucket:
    """One compiled shape: `decode` rows of one token, then `prefill` rows of at most `chunks` prompt chunks."""

    decode: int
    prefill: int
    chunks: int

    def __str__(self) -> str:
        return f"{self.decode}+{self.prefill}"

    @property
    def rows(self) -> int:
        """Rows of the tick, e.g. 8 decodes and 256 prompt tokens are 264."""
        return self.decode + self.prefill

    @property
    def samples(self) -> int:
        """Rows that a token is sampled for: every decode and the last row of every chunk."""
        return self.decode + (self.chunks if self.prefill else 0)

    @property
    def tiles(self) -> dict[int, int]:
        """Query tile sizes of the attention, largest first, each with how many may be needed.

        A chunk is cut into large tiles; a rest of at most half a large tile is cut into small ones.
        """
        if not self.prefill:
            return {}
        if self.prefill <= SMALL_TILE:
            return {self.prefill: self.chunks}
        large = min(LARGE_TILE, self.prefill)
        return {
            large: -(-self.prefill // (large // 2)),
            SMALL_TILE: -(-self.prefill // SMALL_TILE) + self.chunks,
        }

    def page_updates(self, page: int) -> int:
        """Page-table entries that one tick may set."""
        return self.decode + (-(-self.prefill // page) + self.chunks if self.prefill else 0)


@dataclass(frozen=True)
class PlanLayout:
    """Where each field of a plan lies in one flat int32 array, so that a tick takes one small host array."""

    bucket: Bucket
    page: int

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each field, in order."""
        b = self.bucket
        updates = b.page_updates(self.page)
        shapes: dict[str, tuple[int, ...]] = {
            "decodes": (),
            "row_token": (b.rows,),
            "row_slot": (b.rows,),
            "row_position": (b.rows,),
            "sample_row": (b.samples,),
            "sample_slot": (b.samples,),
            "sample_keep": (b.samples,),
            "update_slot": (updates,),
            "update_index": (updates,),
            "update_page": (updates,),
        }
        for size, count in b.tiles.items():
            shapes[f"tile{size}_used"] = ()
            for name in ("slot", "row", "start", "count"):
                shapes[f"tile{size}_{name}"] = (count,)
        return shapes

    @property
    def size(self) -> int:
        """Elements of the flat array."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def views(self, flat: np.ndarray | Array) -> dict[str, np.ndarray | Array]:
        """The fields as views (NumPy) or slices (traced) of `flat`."""
        views, at = {}, 0
        for name, shape in self.shapes.items():
            length = math.prod(shape)
            views[name] = flat[at : at + length].reshape(shape)
            at += length
        return views


class UnknownShapeError(RuntimeError):
    """A plan needs a shape that no program was compiled for."""


def all_buckets(buckets: Buckets) -> tuple[Bucket, ...]:
    """Every shape that is compiled ahead."""
    return tuple(Bucket(d, p, buckets.chunks) for d in buckets.decode for p in (0, *buckets.prefill))


def smallest_bucket(buckets: Buckets, decodes: int, tokens: int, chunks: int) -> Bucket:
    """The smallest shape that holds a plan.

    Raises:
        UnknownShapeError: nothing compiled is large enough.
    """
    decode = next((size for size in buckets.decode if size >= decodes), None)
    prefill = next((size for size in (0, *buckets.prefill) if size >= tokens), None)
    if decode is None or prefill is None or chunks > buckets.chunks:
        raise UnknownShapeError(
            f"a plan of {decodes} decodes and {tokens} prompt tokens in {chunks} chunks is beyond the compiled "
            f"shapes: {buckets.decode[-1]} decodes, {buckets.prefill[-1]} tokens, {buckets.chunks} chunks"
        )
    return Bucket(decode, prefill, buckets.chunks)
