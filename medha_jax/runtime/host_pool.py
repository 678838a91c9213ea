"""KV pages in host memory, and the programs that copy them from and to the devices."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod

import jax
import numpy as np
from jax import Array

from medha_jax.attention import Pool
from medha_jax.mesh import per_group
from medha_jax.plan import HostTier, PageCopy
from medha_jax.runtime.memory import host_tier_bytes
from medha_jax.runtime.programs import Programs
from medha_jax.specs.layout import LayoutError

BATCH_BYTES = 8 * 2**20  # of one group's pages, copied at once
MOST_PAGES = 256  # of a batch


@dataclass
class _Batch:
    """Copies in one direction that may be made in any order: pages and places of each group."""

    to_host: bool
    pages: list[list[int]]
    places: list[list[int]]

    @classmethod
    def empty(cls, to_host: bool, groups: int) -> _Batch:
        """No copies yet."""
        return cls(to_host, [[] for _ in range(groups)], [[] for _ in range(groups)])


def batches(copies: Sequence[PageCopy], groups: int, most: int) -> Iterator[_Batch]:
    """Copies in batches that keep their order, with at most `most` pages of a group, and no page twice."""
    batch = _Batch.empty(True, groups)
    for group, page, place, to_host in copies:
        pages = batch.pages[group]
        if to_host != batch.to_host or len(pages) == most or page in pages:
            if any(batch.pages):
                yield batch
            batch = _Batch.empty(to_host, groups)
        batch.pages[group].append(page)
        batch.places[group].append(place)
    if any(batch.pages):
        yield batch


class HostPool:
    """Owns the host memory for KV pages of this process's devices, and the copies to it that are under way.

    Every device's part of a page stands by itself. The programs are compiled for one number of pages, so nothing
    compiles later.

    Args:
        programs: of the mesh.
        gib: host memory of this process, in GiB.

    Raises:
        LayoutError: the host has less memory, or no page fits.
    """

    def __init__(self, programs: Programs, gib: float) -> None:
        self._programs, self._groups = programs, programs.layout.kvp
        self._places = host_tier_bytes(gib) * jax.process_count() // (self._page_bytes * self._groups)
        if not self._places:
            raise LayoutError(f"{gib:g} GiB of host memory for KV do not hold a page of each group")
        self._size = max(1, min(MOST_PAGES, BATCH_BYTES // self._page_bytes, programs.sizes.pages))
        self._memory = [
            {
                device: np.empty((self._places, *(n for axis, n in enumerate(part) if axis != 2)), leaf.dtype)
                for device in leaf.sharding.addressable_devices
            }
            for leaf in self._leaves
            for part in (leaf.sharding.shard_shape(leaf.shape),)
        ]
        self._under_way: list[tuple[list[Array], list[list[int]]]] = []
        self._read, self._write = self._compile()

    @cached_property
    def _leaves(self) -> list[jax.ShapeDtypeStruct]:
        """Shape and placement of the pool's arrays."""
        leaves: list[jax.ShapeDtypeStruct] = jax.tree.leaves(self._programs.state_shapes.pool)
        return leaves

    @property
    def _page_bytes(self) -> int:
        """Bytes of one page over all layers and heads."""
        pages = self._groups * self._programs.sizes.pages
        total: int = sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in self._leaves)
        return total // pages

    def run(self, pool: Pool, copies: Sequence[PageCopy]) -> Pool:
        """Make copies in their order; returns the pool, which is donated. Copies to the host may still be under way."""
        for batch in batches(copies, self._groups, self._size):
            if batch.to_host:
                leaves = jax.tree.leaves(self._read(pool, self._numbers(batch.pages)))
                for leaf in leaves:
                    leaf.copy_to_host_async()
                self._under_way.append((leaves, batch.places))
            else:
                self._finish()
                pool = self._write(pool, self._numbers(batch.pages), self._content(batch.places))
        if len(self._under_way) > 1:
            self._finish(keep=1)
        return pool

    def forget(self) -> None:
        """Drop the copies under way."""
        self._under_way.clear()

    def measured(self, pool: Pool) -> tuple[Pool, HostTier]:
        """The pool, which is donated and keeps its contents, and the tier with the seconds that a page takes back."""
        pages = range(min(self._size, self._places))
        seconds = 0.0
        for _ in range(2):  # the first time, memory is touched
            copies = [PageCopy(group, page, page, True) for group in range(self._groups) for page in pages]
            pool = jax.block_until_ready(self.run(pool, copies))
            self._finish()
            started = time.perf_counter()
            pool = jax.block_until_ready(self.run(pool, [copy._replace(to_host=False) for copy in copies]))
            seconds = (time.perf_counter() - started) / len(copies)
        return pool, HostTier(self._places, seconds)

    def _finish(self, keep: int = 0) -> None:
        """Wait for all but the last `keep` batches on their way to the host, and store them."""
        while len(self._under_way) > keep:
            leaves, places = self._under_way.pop(0)
            for leaf, memory in zip(leaves, self._memory, strict=True):
                for shard in leaf.addressable_shards:
                    mine = places[(shard.index[2].start or 0) // self._size]
                    if mine:
                        memory[shard.device][mine] = np.moveaxis(np.asarray(shard.data), 2, 0)[: len(mine)]

    def _content(self, places: list[list[int]]) -> Pool:
        """Pages from the host on the devices, as `_write` takes them."""
        arrays = []
        for leaf, memory in zip(self._leaves, self._memory, strict=True):
            shape = self._batch_shape(leaf)
            parts = []
            for device, index in leaf.sharding.addressable_devices_indices_map(shape).items():
                mine = places[(index[2].start or 0) // self._size]
                part = np.zeros(leaf.sharding.shard_shape(shape), leaf.dtype)
                part[:, :, : len(mine)] = np.moveaxis(memory[device][mine], 0, 2)
                parts.append(jax.device_put(part, device))
            arrays.append(jax.make_array_from_single_device_arrays(shape, leaf.sharding, parts))
        content: Pool = jax.tree.unflatten(jax.tree.structure(self._programs.state_shapes.pool), arrays)
        return content

    def _batch_shape(self, leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
        """Shape of one batch's pages of all groups."""
        return (*leaf.shape[:2], self._groups * self._size, *leaf.shape[3:])

    def _numbers(self, pages: list[list[int]]) -> Array:
        """Page numbers `[groups, size]` on the devices; padded with a number beyond every page."""
        numbers = np.full((self._groups, self._size), self._programs.sizes.pages, np.int32)
        for group, mine in enumerate(pages):
            numbers[group, : len(mine)] = mine
        return self._programs.put(numbers, per_group())

    def _compile(self) -> tuple[jax.stages.Compiled, jax.stages.Compiled]:
        """The programs that read pages of the pool, and that write them."""
        programs, pool = self._programs, self._programs.state_shapes.pool
        spec, numbers = programs.state_specs.pool, self._numbers([])
        content = jax.tree.map(lambda x: jax.ShapeDtypeStruct(self._batch_shape(x), x.dtype, sharding=x.sharding), pool)
        mapped = partial(jax.shard_map, mesh=programs.mesh, out_specs=spec, check_vma=False)
        read = mapped(read_pages, in_specs=(spec, per_group()))
        write = mapped(write_pages, in_specs=(spec, per_group(), spec))
        return (
            jax.jit(read).lower(pool, numbers).compile(),
            jax.jit(write, donate_argnums=0).lower(pool, numbers, content).compile(),
        )


def read_pages(pool: Pool, pages: Array) -> Pool:
    """The pages of one group `pages` `[1, n]` of its pool, in the pool's form; any values for numbers beyond it."""
    found: Pool = jax.tree.map(lambda leaf: leaf.at[:, :, pages[0]].get(mode="clip"), pool)
    return found


def write_pages(pool: Pool, pages: Array, content: Pool) -> Pool:
    """The pool of one group with `content` in its pages `[1, n]`; numbers beyond it are dropped."""
    written: Pool = jax.tree.map(lambda leaf, new: leaf.at[:, :, pages[0]].set(new, mode="drop"), pool, content)
    return written
