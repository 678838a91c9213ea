"""Attention of decodes by the kernel, called from a traced program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from medha_jax.attention.work_list import AttentionWork


def attend_decodes(
    name: str,
    queries: Float[Array, "rows heads head_dim"],
    pool: Array,
    layer: Int[Array, ""],
    table: Int[Array, "slots pages_per_slot"],
    work: AttentionWork,
) -> tuple[Float[Array, "rows heads head_dim"], Float[Array, "rows heads"]]:
    """As `Attention.attend`, of the decode rows alone, by the registered kernel `name`."""
    results = (jax.ShapeDtypeStruct(queries.shape, jnp.float32), jax.ShapeDtypeStruct(queries.shape[:2], jnp.float32))
    call = jax.ffi.ffi_call(name, results)
    out, lse = call(queries, pool, layer.astype(jnp.int32), table, work.decode_slots, work.decode_lengths)
    return out.astype(queries.dtype), lse
