"""The padded shapes of a tick and how a plan is laid out in one array of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jax import Array

from medha_jax.attention import Launch
from medha_jax.attention.gpu.items import FIELDS, MERGE_FIELDS
from medha_jax.config import Buckets

LARGE_TILE, SMALL_TILE = 512, 64


class UnknownShapeError(RuntimeError):
    """A plan needs a shape that no program was compiled for."""


@dataclass(frozen=True, order=True)
class Segment:
    """Part of a tick: `decode` rows of one token and `prefill` rows of at most `chunks` prompt chunks."""

    decode: int = 0
    prefill: int = 0
    chunks: int = 0

    def __str__(self) -> str:
        return f"{self.decode}+{self.prefill}"

    @property
    def rows(self) -> int:
        """Rows of the segment, e.g. 8 decodes and 256 prompt tokens are 264."""
        return self.decode + self.prefill

    @property
    def samples(self) -> int:
        """Rows that a token is sampled for: every decode and the last row of every chunk."""
        return self.decode + self.chunks

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

    def updates(self, page: int) -> int:
        """Page-table entries that its chunks may set in one tick."""
        return self.decode + (-(-self.prefill // page) + self.chunks if self.prefill else 0)


@dataclass(frozen=True, order=True)
class Bucket:
    """One compiled shape: rows that all groups share, and rows that each group has of its own.

    Rows lie as `[shared decodes | own decodes | shared prompt chunks | own prompt chunks]`.
    """

    own: Segment
    shared: Segment = Segment()

    def __str__(self) -> str:
        return f"{self.own}/{self.shared}" if self.shared.rows else str(self.own)

    @property
    def segments(self) -> tuple[Segment, Segment]:
        """Shared rows first."""
        return self.shared, self.own

    @property
    def decodes(self) -> int:
        """Rows of one token; they come before all others."""
        return self.shared.decode + self.own.decode

    @property
    def rows(self) -> int:
        """All rows of the tick."""
        return self.shared.rows + self.own.rows

    @property
    def samples(self) -> int:
        """Rows that a token is sampled for; the shared ones come first."""
        return self.shared.samples + self.own.samples

    @property
    def tiles(self) -> dict[int, int]:
        """Tile sizes of both segments, largest first."""
        sizes: dict[int, int] = {}
        for segment in self.segments:
            for size, count in segment.tiles.items():
                sizes[size] = sizes.get(size, 0) + count
        return dict(sorted(sizes.items(), reverse=True))

    @property
    def prompts(self) -> tuple[tuple[int, int], ...]:
        """(prompt tokens, most chunks) of each segment that has any."""
        return tuple((segment.prefill, segment.chunks) for segment in self.segments if segment.prefill)

    def starts(self, segment: int) -> tuple[int, int]:
        """First decode row and first prefill row of a segment (0 shared, 1 own)."""
        if segment == 0:
            return 0, self.decodes
        return self.shared.decode, self.decodes + self.shared.prefill

    def slices(self, largest: Bucket) -> list[tuple[slice, slice]]:
        """Where each run of this bucket's rows, in order, lies among the rows of a larger one: (here, there)."""
        pairs = []
        for segment in (0, 1):
            sizes = self.segments[segment].decode, self.segments[segment].prefill
            for here, there, size in zip(self.starts(segment), largest.starts(segment), sizes, strict=True):
                pairs.append((slice(here, here + size), slice(there, there + size)))
        return sorted((pair for pair in pairs if pair[0].start < pair[0].stop), key=lambda pair: pair[0].start)


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


@dataclass(frozen=True)
class Need:
    """What one segment of a plan holds: single tokens, prompt tokens and the chunks they come in."""

    decodes: int = 0
    tokens: int = 0
    chunks: int = 0

    def __or__(self, other: Need) -> Need:
        """What holds either."""
        return Need(max(self.decodes, other.decodes), max(self.tokens, other.tokens), max(self.chunks, other.chunks))


def all_buckets(own: Buckets, shared: Buckets | None) -> tuple[Bucket, ...]:
    """Every shape that is compiled ahead; `shared` is None where there is one group only."""
    privates, commons = list(_segments(own)), [Segment()]
    if shared is not None:
        commons += _segments(shared)
    return tuple(Bucket(private, common) for common in commons for private in privates)


def _segments(buckets: Buckets) -> Iterable[Segment]:
    for decode in buckets.decode:
        for prefill in buckets.prefill_sizes:
            yield Segment(decode, prefill, buckets.chunks if prefill else 0)


def smallest_bucket(own: Buckets, shared: Buckets | None, need: Need, shared_need: Need) -> Bucket:
    """The smallest shape that holds these rows.

    Raises:
        UnknownShapeError: nothing compiled is large enough.
    """
    common = Segment()
    if shared_need != Need():
        if shared is None:
            raise UnknownShapeError("a plan has rows that groups share, but there is only one group")
        common = _smallest(shared, shared_need, "shared ")
    return Bucket(_smallest(own, need, ""), common)


def _smallest(buckets: Buckets, need: Need, kind: str) -> Segment:
    decode = next((size for size in buckets.decode if size >= need.decodes), None)
    prefill = next((size for size in buckets.prefill_sizes if size >= need.tokens), None)
    if decode is None or prefill is None or need.chunks > buckets.chunks:
        raise UnknownShapeError(
            f"a plan of {need.decodes} {kind}decodes and {need.tokens} {kind}prompt tokens in {need.chunks} chunks is "
            f"beyond the compiled shapes: {buckets.decode[-1]} decodes, {buckets.prefill[-1]} tokens, "
            f"{buckets.chunks} chunks"
        )
    return Segment(decode, prefill, buckets.chunks if prefill else 0)
