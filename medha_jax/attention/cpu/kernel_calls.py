"""Attention by the kernels for CPUs, called from a traced program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from medha_jax.attention.work_list import AttentionWork, Tiles

Queries = Float[Array, "rows heads head_dim"]
Results = tuple[Float[Array, "rows heads head_dim"], Float[Array, "rows heads"]]
Table = Int[Array, "slots pages_per_slot"]


def attend(
    decodes: str, prompts: str, queries: Queries, pool: Array, layer: Int[Array, ""], table: Table, work: AttentionWork
) -> Results:
    """As `Attention.attend`, by the registered kernels `decodes` and `prompts`."""
    rows = work.decode_slots.shape[0]
    if not work.tiles:
        return attend_decodes(decodes, queries, pool, layer, table, work)
    every = attend_prompts(prompts, queries, pool, layer, table, work.tiles)
    if not rows:
        return every
    mine = attend_decodes(decodes, queries[:rows], pool, layer, table, work)
    out, lse = (lax.dynamic_update_slice_in_dim(*pair, 0, 0) for pair in zip(every, mine, strict=True))
    return out, lse


def attend_decodes(
    name: str, queries: Queries, pool: Array, layer: Int[Array, ""], table: Table, work: AttentionWork
) -> Results:
    """As `Attention.attend`, of the decode rows alone, by the registered kernel `name`."""
    return _call(name, queries, pool, layer, table, work.decode_slots, work.decode_lengths)


def attend_prompts(
    name: str, queries: Queries, pool: Array, layer: Int[Array, ""], table: Table, tiles: tuple[Tiles, ...]
) -> Results:
    """As `Attention.attend`, of the rows of tiles, by the registered kernel `name`; 0 and -inf for other rows."""
    listed = jnp.concatenate([_rows_of(one) for one in tiles])
    return _call(name, queries, pool, layer, table, listed)


def _rows_of(tiles: Tiles) -> Int[Array, "tiles 5"]:
    """What `prompt_kernel` knows as parts, one a tile; those that are padding have no rows."""
    count = jnp.where(jnp.arange(len(tiles.count)) < tiles.used, tiles.count, 0)
    return jnp.stack([tiles.slot, tiles.row, tiles.start, count, tiles.limit], axis=1)


def _call(name: str, queries: Queries, pool: Array, layer: Array, table: Table, *work: Array) -> Results:
    results = (jax.ShapeDtypeStruct(queries.shape, jnp.float32), jax.ShapeDtypeStruct(queries.shape[:2], jnp.float32))
    out, lse = jax.ffi.ffi_call(name, results)(queries, pool, layer.astype(jnp.int32), table, *work)
    return out.astype(queries.dtype), lse
