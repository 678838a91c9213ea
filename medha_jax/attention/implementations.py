"""The implementations of attention, and the choice for a mesh."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from medha_jax.attention import xla
from medha_jax.attention.cpu import kernel_calls as cpu
from medha_jax.attention.gpu import attend as gpu
from medha_jax.attention.gpu.fields import ItemLayout, KernelWork
from medha_jax.attention.gpu.launch import (
    LARGEST_HEAD_DIM,
    GpuTarget,
    Launch,
    LaunchError,
    LaunchTable,
    TileConfig,
    shipped_table,
)
from medha_jax.attention.interface import Attention
from medha_jax.attention.merge import merge
from medha_jax.attention.pool import FP8, Pool
from medha_jax.attention.rotate import Angles, rotate
from medha_jax.attention.store import store as store_rows
from medha_jax.attention.work_list import AttentionWork, TileLayout
from medha_jax.specs.buckets import Bucket

PACKAGES = ("triton", "jax_triton")
LEAST_CAPABILITY, LEAST_FP8_CAPABILITY = 80, 89
DTYPES = ("bfloat16", "float16", "float32")
CPU_DTYPES = ("float32", "bfloat16")
FEWEST_LANES = 4  # of a vector on CPUs


@dataclass(frozen=True)
class XlaAttention:
    """Attention in plain XLA, on any platform."""

    why: str
    name: ClassVar[str] = "xla"
    lowers_alone: ClassVar[bool] = False

    def layout(self, bucket: Bucket) -> TileLayout:
        """Decode rows, and tiles of prompt rows."""
        return TileLayout(bucket)

    def store(
        self,
        pool: Pool,
        layer: Array,
        table: Array,
        queries: Array,
        keys: Array,
        values: Array,
        angles: Angles,
        work: AttentionWork,
    ) -> tuple[Array, Pool]:
        """See `attention.rotate.rotate` and `attention.store.store`."""
        queries, keys = rotate(queries, *angles), rotate(keys, *angles)
        finite = (jnp.isfinite(keys) & jnp.isfinite(values)).all((1, 2))
        pool = store_rows(pool, layer, table, keys, values, work)
        return jnp.where(finite[:, None, None], queries, jnp.nan), pool

    def attend(
        self, queries: Array, pool: Pool, layer: Array, table: Array, work: AttentionWork
    ) -> tuple[Array, Array]:
        """See `attention.xla.attend`."""
        return xla.attend(queries, pool, layer, table, work)

    def merge_groups(self, out: Array, packed: Array, first: int) -> Array:
        """See `attention.merge.merge`."""
        return lax.dynamic_update_slice_in_dim(out, merge(packed), first, 0)


@dataclass(frozen=True)
class LlvmAttention(XlaAttention):
    """Attention by kernels that LLVM compiled for this processor, which read pages in place.

    Args:
        decodes: name of the kernel for single queries.
        prompts: name of the kernel for prompt rows; XLA attends for them if None.
    """

    decodes: str
    prompts: str | None
    name: ClassVar[str] = "llvm"

    def attend(
        self, queries: Array, pool: Pool, layer: Array, table: Array, work: AttentionWork
    ) -> tuple[Array, Array]:
        """See `attention.xla.attend`, `attention.cpu.decode_kernel` and `attention.cpu.prompt_kernel`."""
        if self.prompts is None:
            return xla.attend(queries, pool, layer, table, work, partial(cpu.attend_decodes, self.decodes))
        assert isinstance(pool, Array)  # `choose` refuses others
        return cpu.attend(self.decodes, self.prompts, queries, pool, layer, table, work)


@dataclass(frozen=True)
class KernelAttention:
    """The Triton kernels on one kind of GPU, for one model's sizes on a device.

    Args:
        heads: KV heads of a device; `group` query heads share each.
        dtype: of the pool; `float8_e4m3fn` for an eight-bit pool.
    """

    target: GpuTarget
    table: LaunchTable
    heads: int
    group: int
    head_dim: int
    dtype: str
    name: ClassVar[str] = "triton"
    lowers_alone: ClassVar[bool] = True  # lowering runs Triton, whose thread safety is not documented

    @property
    def why(self) -> str:
        """The GPU, and whether the tile sizes were measured on it."""
        tiles = [self._tile(queries) for queries in (1, 2**20)]
        measured = "measured" if all(tile.measured for tile in tiles) else "not measured"
        return f"{self.target.name}, sm{self.target.capability}; tile sizes {measured} on it"

    def _tile(self, queries: int) -> TileConfig:
        tile = self.table.find(self.target, self.head_dim, self.dtype, queries)
        rows = 1 << (max(tile.rows, self.group) - 1).bit_length()  # a tile holds all heads of a group
        return replace(tile, rows=rows)

    def layout(self, bucket: Bucket) -> ItemLayout:
        """The work list, and the places where rows are stored."""
        return ItemLayout(bucket, self.launch(bucket.decodes, bucket.prompts))

    def launch(self, decodes: int, prompts: Sequence[tuple[int, int]]) -> Launch:
        """The launch for one shape of a tick. `prompts` has (tokens, most chunks) of each segment of prompt rows."""
        prefill, tiles = None, 0
        if prompts:
            prefill = self._tile(max(2, max(tokens for tokens, _ in prompts) * self.group))
            size = prefill.rows // self.group
            # every chunk, and the padding after the last one, may end in a partial tile
            tiles = sum(-(-tokens // size) + chunks + 1 for tokens, chunks in prompts)
        return Launch(self._tile(1), prefill, decodes, tiles, self.heads, self.group, self.target.processors)

    def store(
        self,
        pool: Pool,
        layer: Array,
        table: Array,
        queries: Array,
        keys: Array,
        values: Array,
        angles: Angles,
        work: KernelWork,
    ) -> tuple[Array, Pool]:
        """See `attention.gpu.attend.store`."""
        return gpu.store(pool, layer, table, queries, keys, values, angles, work, self.target.capability)

    def attend(self, queries: Array, pool: Pool, layer: Array, table: Array, work: KernelWork) -> tuple[Array, Array]:
        """See `attention.gpu.attend.attend`."""
        return gpu.attend(queries, pool, layer, table, work, self.target.capability)

    def merge_groups(self, out: Array, packed: Array, first: int) -> Array:
        """See `attention.gpu.attend.merge_groups`."""
        return gpu.merge_groups(out, packed, first, self.target.capability)


def choose(
    setting: str,
    device: jax.Device,
    heads: int,
    group: int,
    head_dim: int,
    page: int,
    dtype: jnp.dtype,
    fp8: bool,
    target: GpuTarget | None = None,
) -> Attention:
    """Choose the implementation for a mesh.

    Args:
        setting: `xla`, `llvm`, `triton`, or `auto`: that of the platform if it can run, else XLA.
        device: any device of the mesh; all are of one kind.
        heads: KV heads of a device; `group` query heads share each.
        page: tokens of a page.
        dtype: of the model.
        fp8: the pool has eight bits per value.
        target: GPU to compile for, if not the device.

    Raises:
        LaunchError: what the setting names cannot run here; the message says why.
    """
    if setting == "xla":
        return XlaAttention("asked for")
    on_cpu = target is None and device.platform == "cpu"
    try:
        if setting == "llvm" or (setting == "auto" and on_cpu):
            if not on_cpu:
                raise LaunchError("it compiles for CPUs, and the mesh is on GPUs")
            return _by_llvm(heads, group, head_dim, page, dtype, fp8)
        return _kernels(target or GpuTarget.of(device), heads, group, head_dim, dtype, fp8)
    except LaunchError as error:
        if setting != "auto":
            raise LaunchError(f"attention={setting} cannot run here: {error}. Use attention=auto or xla") from None
        return XlaAttention(str(error))


def _by_llvm(heads: int, group: int, head_dim: int, page: int, dtype: jnp.dtype, fp8: bool) -> LlvmAttention:
    from medha_jax.attention.cpu.decode_handler import decode_module
    from medha_jax.attention.cpu.job import Kind
    from medha_jax.attention.cpu.prompt_handler import prompt_module
    from medha_jax.native.compiled import processor, register  # llvmlite, which only CPUs need

    if fp8:
        raise LaunchError("the kernels for CPUs read no eight-bit pool")
    name = jnp.dtype(dtype).name
    if name not in CPU_DTYPES:
        raise LaunchError(f"dtype is {name}; the kernels for CPUs take {' and '.join(CPU_DTYPES)}")
    if head_dim % FEWEST_LANES:
        raise LaunchError(f"head_dim is {head_dim}; the kernels for CPUs take multiples of {FEWEST_LANES}")
    here = processor()
    lanes = math.gcd(head_dim, here.lanes)  # of powers of two
    kind = Kind(heads, group, head_dim, page, name == "bfloat16", lanes, here.registers)
    decodes = register(decode_module, kind)
    if kind.bfloat16 or page % lanes:  # XLA multiplies matrices of bfloat16 by instructions of their own
        return LlvmAttention(f"decodes by a kernel for {here.name}, prompts by XLA", decodes, None)
    return LlvmAttention(f"by kernels for {here.name}", decodes, register(prompt_module, kind))


def _kernels(target: GpuTarget, heads: int, group: int, head_dim: int, dtype: jnp.dtype, fp8: bool) -> KernelAttention:
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise LaunchError(f"{' and '.join(missing)} not installed; pip install 'medha-jax[cuda12]' brings them")
    least = LEAST_FP8_CAPABILITY if fp8 else LEAST_CAPABILITY
    if target.capability < least:
        what = "an eight-bit pool needs" if fp8 else "the kernels need"
        raise LaunchError(f"{what} compute capability {least / 10}; {target.name} has {target.capability / 10}")
    if head_dim > LARGEST_HEAD_DIM or head_dim % 8:
        raise LaunchError(f"head_dim is {head_dim}; the kernels take multiples of 8 up to {LARGEST_HEAD_DIM}")
    name = jnp.dtype(dtype).name
    if name not in DTYPES:
        raise LaunchError(f"dtype is {name}; the kernels take {', '.join(DTYPES)}")
    stored = jnp.dtype(FP8).name if fp8 else name
    chosen = KernelAttention(target, shipped_table(), heads, group, head_dim, stored)
    chosen.launch(1, [(1, 1)])  # fails if the table has no row for it
    return chosen
