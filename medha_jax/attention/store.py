"""Writing a tick's keys and values into the paged pool, in place.

The pool is `[layers, 2, pages, kv_heads, page, head_dim]`. One head's tokens on a page are contiguous, so a page is an
operand of a 2-D product without a copy. All values are finite, so a zero weight masks out stale values.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Num

from medha_jax.attention.pool import Fp8Pool, Pool, to_fp8
from medha_jax.attention.work_list import AttentionWork, Tiles


def store(
    pool: Pool,
    layer: Int[Array, ""],
    table: Int[Array, "slots pages_per_slot"],
    keys: Float[Array, "rows kv_heads head_dim"],
    values: Float[Array, "rows kv_heads head_dim"],
    work: AttentionWork,
) -> Pool:
    """Store the keys and values of the tick's rows at their positions; padding rows are not stored.

    It loops over slice updates. XLA on CPU would expand a scatter into a loop that costs more than the copy.
    """
    stacked = jnp.stack([keys, values]).transpose(0, 2, 1, 3)  # [2, kv_heads, rows, head_dim]
    stacked = jnp.where(jnp.isfinite(stacked), stacked, 0)
    if isinstance(pool, Fp8Pool):
        parts, exponents = to_fp8(stacked)
        written = _write(pool.exponents[..., None], layer, table, exponents[..., None], work)
        return Fp8Pool(_write(pool.values, layer, table, parts, work), written[..., 0])
    return _write(pool, layer, table, stacked.astype(pool.dtype), work)


def _write(
    pool: Num[Array, "layers 2 pages kv_heads page width"],
    layer: Array,
    table: Array,
    stacked: Num[Array, "2 kv_heads rows width"],
    work: AttentionWork,
) -> Array:
    if work.write_row.shape[0]:
        pool = _write_decodes(pool, layer, table, stacked, work)
    page = pool.shape[4]
    # a page may begin before its tile's first row, or end after its last row
    padded = jnp.pad(stacked, ((0, 0), (0, 0), (page, page), (0, 0))) if work.tiles else stacked
    for tiles in work.tiles:
        pool = _write_tiles(pool, layer, table, padded, tiles)
    return pool


def _write_decodes(pool: Array, layer: Array, table: Array, stacked: Array, work: AttentionWork) -> Array:
    page = pool.shape[4]

    def one(number: Array, pool: Array) -> Array:
        row = work.write_row[number]
        position = work.decode_lengths[row] - 1
        held = table[work.decode_slots[row], position // page]
        token = lax.dynamic_slice_in_dim(stacked, row, 1, axis=2)[None, :, None]
        return lax.dynamic_update_slice(pool, token, (layer, 0, held, 0, position % page, 0))

    written: Array = lax.fori_loop(0, work.writes, one, pool)
    return written


def _write_tiles(pool: Array, layer: Array, table: Array, padded: Array, tiles: Tiles) -> Array:
    _, two, _, kv_heads, page, head_dim = pool.shape

    def one_tile(index: Array, pool: Array) -> Array:
        start, end = tiles.start[index], tiles.start[index] + tiles.stored[index]

        def one_page(number: Array, pool: Array) -> Array:
            at = (layer, 0, table[tiles.slot[index], number], 0, 0, 0)
            row = tiles.row[index] + number * page - start + page  # of the page's first token, in `padded`
            new = lax.dynamic_slice_in_dim(padded, row, page, axis=2)
            old = lax.dynamic_slice(pool, at, (1, two, 1, kv_heads, page, head_dim))
            position = number * page + jnp.arange(page)
            mine = ((start <= position) & (position < end))[:, None]
            return lax.dynamic_update_slice(pool, jnp.where(mine, new[None, :, None], old), at)

        first = start // page
        past = jnp.where(end > start, (end - 1) // page + 1, first)
        written: Array = lax.fori_loop(first, past, one_page, pool)
        return written

    written: Array = lax.fori_loop(0, tiles.used, one_tile, pool)
    return written
