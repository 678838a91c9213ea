"""Rotation, KV writes and attention by the Triton kernels, with the same results as the XLA ones."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from medha_jax.attention.gpu.fields import KernelWork
from medha_jax.attention.gpu.launch import TileConfig
from medha_jax.attention.pool import Fp8Pool, Pool, values_of
from medha_jax.attention.rotate import Angles

MERGE_ROWS, MERGE_PARTS = 4, 16  # merge pass: rows per program, and parts read at once
WRITE_WARPS, MERGE_WARPS = 1, 4  # a program that writes has one KV head's share of one row


def store(
    pool: Pool,
    layer: Int[Array, ""],
    table: Int[Array, "slots pages_per_slot"],
    queries: Float[Array, "rows heads head_dim"],
    keys: Float[Array, "rows kv_heads head_dim"],
    values: Float[Array, "rows kv_heads head_dim"],
    angles: Angles,
    work: KernelWork,
    capability: int,
) -> tuple[Float[Array, "rows heads head_dim"], Pool]:
    """As `Attention.store`, in one launch."""
    from medha_jax.attention.gpu import write_kernels
    from medha_jax.attention.gpu.call import launch

    sizes = _pool_sizes(pool)
    group = queries.shape[1] // sizes["HEADS"]
    # Where one product made all three, XLA takes its result as it is. Cut apart, each would be copied.
    heads = jnp.concatenate([queries, keys, values], axis=1)
    inputs = (heads, *angles, work.position, work.slot, table, layer)
    constants = dict(sizes, GROUP=group, MANY=_power_of_two(group), WIDTH=table.shape[1])
    fp8 = isinstance(pool, Fp8Pool)
    rotated, *stored = launch(
        kernel=write_kernels.write_fp8_kernel if fp8 else write_kernels.write_kernel,
        inputs=inputs,
        changed=(pool.values, pool.exponents) if isinstance(pool, Fp8Pool) else (pool,),
        made=(jax.ShapeDtypeStruct(queries.shape, queries.dtype),),
        grid=(keys.shape[0], sizes["HEADS"]),
        warps=WRITE_WARPS,
        stages=1,
        capability=capability,
        constants=constants,
    )
    return rotated, Fp8Pool(*stored) if fp8 else stored[0]


def attend(
    queries: Float[Array, "rows heads head_dim"],
    pool: Pool,
    layer: Int[Array, ""],
    table: Int[Array, "slots pages_per_slot"],
    work: KernelWork,
    capability: int,
) -> tuple[Float[Array, "rows heads head_dim"], Float[Array, "rows heads"]]:
    """As `Attention.attend`: one launch, or one per kind of tile, then a merge of the tiles that were cut."""
    from medha_jax.attention.gpu import kernels, merge_kernels
    from medha_jax.attention.gpu.call import launch

    shape = work.launch
    sizes = _pool_sizes(pool)
    heads, head_dim = sizes["HEADS"], sizes["DIM"]
    exponents = pool.exponents if isinstance(pool, Fp8Pool) else layer  # unused without fp8; any array will do
    inputs = (queries, values_of(pool), exponents, layer, table, work.items)
    parts = max(1, shape.part_rows)
    made = (
        jax.ShapeDtypeStruct(queries.shape, queries.dtype),
        jax.ShapeDtypeStruct(queries.shape[:2], jnp.float32),
        jax.ShapeDtypeStruct((heads, parts, head_dim), jnp.float32),
        jax.ShapeDtypeStruct((heads, parts), jnp.float32),
    )
    constants = dict(
        sizes,
        GROUP=shape.group,
        WIDTH=table.shape[1],
        PARTS=parts,
        SCALE=math.log2(math.e) / math.sqrt(head_dim),
        FP8=isinstance(pool, Fp8Pool),
        PRECISION="ieee",  # for fp32 products, which only checks use
    )

    def run(kernel: Any, tile: TileConfig, items: int, changed: tuple[Array, ...], **more: Any) -> tuple[Array, ...]:
        return launch(
            kernel=kernel,
            inputs=inputs,
            changed=changed,
            made=() if changed else made,
            grid=(items, heads),
            warps=tile.warps,
            stages=tile.stages,
            capability=capability,
            constants=dict(constants, ROWS=tile.rows, KEYS=tile.keys, STAGES=tile.stages, **more),
        )

    decode, prefill = shape.decode, shape.prefill
    if prefill is not None and shape.together:
        small = dict(DECODE_ROWS=decode.rows, DECODE_KEYS=decode.keys, DECODE_STAGES=decode.stages)
        filled = run(kernels.attend_mixed_kernel, prefill, shape.items, (), **small)
    else:
        filled = run(kernels.attend_kernel, decode, shape.decode_items, (), FIRST=0)
        if prefill is not None:
            more = kernels.attend_more_kernel
            filled = run(more, prefill, shape.prefill_items, filled, FIRST=shape.decode_items)
    out, lse, part_out, part_lse = filled
    rows = max(tile.rows for tile in (decode, prefill) if tile is not None)
    out, lse = launch(
        kernel=merge_kernels.merge_kernel,
        inputs=(part_out, part_lse, work.merges),
        changed=(out, lse),
        made=(),
        grid=(shape.merges, heads, -(-rows // MERGE_ROWS)),
        warps=MERGE_WARPS,
        stages=2,
        capability=capability,
        constants=dict(
            HEADS=heads,
            GROUP=shape.group,
            DIM=head_dim,
            WIDE=sizes["WIDE"],
            PARTS=parts,
            ROWS=MERGE_ROWS,
            SOME=MERGE_PARTS,
        ),
    )
    return out, lse


def merge_groups(
    out: Float[Array, "rows heads head_dim"],
    packed: Float[Array, "groups shared heads packed"],
    first: int,
    capability: int,
) -> Float[Array, "rows heads head_dim"]:
    """As `Attention.merge_groups`, in one launch."""
    from medha_jax.attention.gpu import merge_kernels
    from medha_jax.attention.gpu.call import launch

    groups, shared, heads, width = packed.shape
    lines, head_dim = shared * heads, out.shape[2]
    (merged,) = launch(
        kernel=merge_kernels.merge_groups_kernel,
        inputs=(packed,),
        changed=(out,),
        made=(),
        grid=(-(-lines // MERGE_ROWS),),
        warps=MERGE_WARPS,
        stages=1,
        capability=capability,
        constants=dict(
            GROUPS=groups,
            LINES=lines,
            SKIPPED=first * heads,
            DIM=head_dim,
            WIDE=_wide(head_dim),
            WIDTH=width,
            ROWS=MERGE_ROWS,
            SOME=min(MERGE_PARTS, _power_of_two(groups)),
        ),
    )
    return merged


def _pool_sizes(pool: Pool) -> dict[str, int]:
    _, _, pages, heads, page, head_dim = values_of(pool).shape
    return dict(PAGES=pages, HEADS=heads, PAGE=page, DIM=head_dim, WIDE=_wide(head_dim))


def _wide(head_dim: int) -> int:
    """Elements that a program holds of a head: the products take 16 or more, and a power of two."""
    return max(16, _power_of_two(head_dim))


def _power_of_two(number: int) -> int:
    """The least power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
