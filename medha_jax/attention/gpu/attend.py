"""Attention and KV writes by the Triton kernels, with the same results as the XLA ones."""

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

MERGE_ROWS, MERGE_PARTS = 4, 16  # merge pass: rows per program, and parts read at once
WRITE_WARPS, MERGE_WARPS = 4, 4


def store(
    pool: Pool,
    layer: Int[Array, ""],
    table: Int[Array, "slots pages_per_slot"],
    keys: Float[Array, "rows kv_heads head_dim"],
    values: Float[Array, "rows kv_heads head_dim"],
    work: KernelWork,
    capability: int,
) -> Pool:
    """As `attention.store`: one program per row writes into the pool in place."""
    from medha_jax.attention.gpu import kernels
    from medha_jax.attention.gpu.call import launch

    sizes = _pool_sizes(pool)
    heads = sizes["HEADS"]
    inputs = (keys, values, work.position, work.slot, table, layer)
    constants = dict(sizes, MANY=_power_of_two(heads), WIDTH=table.shape[1])
    fp8 = isinstance(pool, Fp8Pool)
    changed = launch(
        kernel=kernels.write_fp8_kernel if fp8 else kernels.write_kernel,
        inputs=inputs,
        changed=(pool.values, pool.exponents) if isinstance(pool, Fp8Pool) else (pool,),
        made=(),
        grid=(keys.shape[0],),
        warps=WRITE_WARPS,
        stages=1,
        capability=capability,
        constants=constants,
    )
    return Fp8Pool(*changed) if fp8 else changed[0]


def attend(
    queries: Float[Array, "rows heads head_dim"],
    pool: Pool,
    layer: Int[Array, ""],
    table: Int[Array, "slots pages_per_slot"],
    work: KernelWork,
    capability: int,
) -> tuple[Float[Array, "rows heads head_dim"], Float[Array, "rows heads"]]:
    """As `Attention.attend`: one launch, or one per kind of tile, then a merge of the tiles that were cut."""
    from medha_jax.attention.gpu import kernels
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
        kernel=kernels.merge_kernel,
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


def _pool_sizes(pool: Pool) -> dict[str, int]:
    _, _, pages, heads, page, head_dim = values_of(pool).shape
    return dict(PAGES=pages, HEADS=heads, PAGE=page, DIM=head_dim, WIDE=max(16, _power_of_two(head_dim)))


def _power_of_two(number: int) -> int:
    """The least power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
