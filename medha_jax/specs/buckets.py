"""The padded shapes of a tick, and the smallest one that holds a plan."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from medha_jax.config import Buckets

LARGE_TILE, SMALL_TILE = 512, 64


class UnknownShapeError(RuntimeError):
    """A plan needs a shape that was not compiled."""


class Segment(NamedTuple):
    """Part of a tick: `decode` rows of one token and `prefill` rows of at most `chunks` prompt chunks.

    Either a part of a compiled shape, padding included, or the rows of a plan that such a part must hold.
    """

    decode: int = 0
    prefill: int = 0
    chunks: int = 0

    def __str__(self) -> str:
        return f"{self.decode}+{self.prefill}"

    @classmethod
    def holding(cls, segments: Iterable[Segment]) -> Segment:
        """The smallest segment that holds each of these, at least one."""
        return cls._make(map(max, zip(*segments, strict=True)))

    @property
    def rows(self) -> int:
        """All rows, e.g. 264 for 8 decodes and 256 prompt tokens."""
        return self.decode + self.prefill

    @property
    def samples(self) -> int:
        """Rows that a token is sampled for: every decode and the last row of every chunk."""
        return self.decode + self.chunks

    @property
    def tiles(self) -> dict[int, int]:
        """Query tile sizes of the attention, largest first, each with the number that may be needed.

        A chunk is cut into large tiles. The rest is cut into small ones if it is at most half a large tile.
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
        """Most page-table entries that its chunks set in one tick."""
        return self.decode + (-(-self.prefill // page) + self.chunks if self.prefill else 0)


NO_ROWS = Segment()


class Bucket(NamedTuple):
    """One compiled shape: shared rows, which all groups compute, and own rows of each group.

    Rows lie as `[own decodes | shared decodes | shared prompt chunks | own prompt chunks]`.
    """

    own: Segment
    shared: Segment = NO_ROWS

    def __str__(self) -> str:
        return f"{self.own}/{self.shared}" if self.shared.rows else str(self.own)

    @property
    def segments(self) -> tuple[Segment, Segment]:
        """Both segments, the shared one first."""
        return self.shared, self.own

    @property
    def decodes(self) -> int:
        """Rows of one token; they come first."""
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
            return self.own.decode, self.decodes
        return 0, self.decodes + self.shared.prefill

    @property
    def shared_rows(self) -> slice:
        """The shared rows, which follow one another."""
        return slice(self.own.decode, self.own.decode + self.shared.rows)

    def slices(self, largest: Bucket) -> list[tuple[slice, slice]]:
        """Where this bucket's runs of rows lie among the rows of a larger one: pairs (here, there), in order."""
        pairs = []
        for segment in (0, 1):
            sizes = self.segments[segment].decode, self.segments[segment].prefill
            for here, there, size in zip(self.starts(segment), largest.starts(segment), sizes, strict=True):
                pairs.append((slice(here, here + size), slice(there, there + size)))
        return sorted((pair for pair in pairs if pair[0].start < pair[0].stop), key=lambda pair: pair[0].start)


def all_buckets(own: Buckets, shared: Buckets | None) -> tuple[Bucket, ...]:
    """Every shape that is compiled ahead; `shared` is None if there is only one group."""
    privates, commons = list(_segments(own)), [NO_ROWS]
    if shared is not None:
        commons += _segments(shared)
    return tuple(Bucket(private, common) for common in commons for private in privates)


def slice_shapes(own: Buckets, shared: Buckets | None) -> tuple[Bucket, ...]:
    """Every shape that slices are compiled for: one chunk of each group, one shared chunk, or both."""
    privates, commons = [NO_ROWS, *_slices(own)], [NO_ROWS, *(_slices(shared) if shared is not None else ())]
    return tuple(Bucket(private, common) for common in commons for private in privates if private.rows or common.rows)


def smallest_slice(own: Buckets, shared: Buckets | None, need: int, shared_need: int = 0) -> Bucket:
    """The smallest shape of a slice that holds chunks of `need` own and `shared_need` shared tokens.

    Raises:
        UnknownShapeError: no compiled shape is large enough.
    """
    return Bucket(_smallest_slice(own, need), _smallest_slice(shared, shared_need))


def _slices(buckets: Buckets) -> Iterable[Segment]:
    return (Segment(0, size, 1) for size in buckets.slices)


def _smallest_slice(buckets: Buckets | None, need: int) -> Segment:
    sizes = () if buckets is None else buckets.slices
    if not need:
        return NO_ROWS
    if not sizes or need > sizes[-1]:
        raise UnknownShapeError(f"a slice of {need} tokens is beyond the compiled ones: {sizes or 'none'}")
    return Segment(0, smallest_size(sizes, need), 1)


def padded_segment(buckets: Buckets, decode: int, prefill: int) -> Segment:
    """The compiled segment of two padded sizes; with prompt rows it has all chunks."""
    return Segment(decode, prefill, buckets.chunks if prefill else 0)


def _segments(buckets: Buckets) -> Iterable[Segment]:
    pairs = ((decode, prefill) for decode in buckets.decode for prefill in buckets.prefill_sizes)
    return (padded_segment(buckets, decode, prefill) for decode, prefill in pairs if decode or prefill)


def smallest_bucket(own: Buckets, shared: Buckets | None, need: Segment, shared_need: Segment = NO_ROWS) -> Bucket:
    """The smallest shape that holds these rows; `shared` is None if there is only one group.

    Raises:
        UnknownShapeError: no compiled shape is large enough.
    """
    if shared_need == NO_ROWS:
        return Bucket(_smallest_segment(own, need, ""))
    if shared is None:
        raise UnknownShapeError("a plan has rows that groups share, but there is only one group")
    return Bucket(_smallest_segment(own, need, ""), _smallest_segment(shared, shared_need, "shared "))


def _smallest_segment(buckets: Buckets, need: Segment, kind: str) -> Segment:
    if need.chunks <= buckets.chunks and need.decode <= buckets.decode[-1] and need.prefill <= buckets.prefill[-1]:
        return padded_segment(buckets, *padded_sizes(buckets, need.decode, need.prefill))
    raise UnknownShapeError(
        f"a plan of {need.decode} {kind}decodes and {need.prefill} {kind}prompt tokens in {need.chunks} chunks is "
        f"beyond the compiled shapes: {buckets.decode[-1]} decodes, {buckets.prefill[-1]} tokens, "
        f"{buckets.chunks} chunks"
    )


def padded_sizes(buckets: Buckets, decodes: int, tokens: int) -> tuple[int, int]:
    """The smallest decode and prompt sizes that hold these rows; the largest must hold them. There are always rows.

    `smallest_size` of each, without its calls: planning asks for many thousands of them a second.
    """
    decode, prefill = buckets.decode, buckets.prefill_sizes
    decode_rows, prompt_rows = decode[bisect_left(decode, decodes)], prefill[bisect_left(prefill, tokens)]
    return (decode_rows, prompt_rows) if decode_rows or prompt_rows else (buckets.fewest_decodes, 0)


def many_padded_sizes(buckets: Buckets, decodes: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`padded_sizes` of many; the largest sizes for rows above them."""
    decode, prompt = smallest_sizes(buckets.decode, decodes), smallest_sizes(buckets.prefill_sizes, tokens)
    return np.where(decode + prompt, decode, buckets.fewest_decodes), prompt


def smallest_size(sizes: Sequence[int], count: int) -> int:
    """The smallest of increasing sizes that holds `count`; the largest must hold it."""
    return sizes[bisect_left(sizes, count)]


def smallest_sizes(sizes: Sequence[int], counts: np.ndarray) -> np.ndarray:
    """`smallest_size` of many counts; the largest size for counts above it."""
    return np.array(sizes)[np.minimum(np.searchsorted(sizes, counts), len(sizes) - 1)]
