"""Merging attention over disjoint parts of a request's KV: exact, in fp32 (log-sum-exp weights, arXiv 2409.17264)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float


def pack(out: Float[Array, "rows heads head_dim"], lse: Float[Array, "rows heads"]) -> Array:
    """Output and log-sum-exp in one array, so that one collective carries both.

    The bits of the fp32 log-sum-exp follow the output's `head_dim` elements: as one element of a 4-byte dtype, or two
    of a 2-byte dtype, the lower half first. Bits are shifted because XLA for GPUs computes a bitcast between widths in
    a launch of its own.
    """
    if out.dtype.itemsize == 4:
        words = [lax.bitcast_convert_type(lse, out.dtype)]
    else:
        bits = lax.bitcast_convert_type(lse, jnp.uint32)
        words = [lax.bitcast_convert_type(half.astype(jnp.uint16), out.dtype) for half in (bits & 0xFFFF, bits >> 16)]
    return jnp.concatenate([out, *(word[..., None] for word in words)], axis=-1)


def merge(packed: Float[Array, "groups rows heads packed"]) -> Float[Array, "rows heads head_dim"]:
    """`o = sum_g e^(lse_g - m) o_g / sum_g e^(lse_g - m)`, `m` the largest `lse_g`; 0 where no group saw a token."""
    out, lse = _unpack(packed)
    top = lse.max(0)
    weights = jnp.where(jnp.isneginf(lse), 0, jnp.exp(lse - jnp.where(jnp.isneginf(top), 0, top)))
    total = weights.sum(0)
    merged = (weights[..., None] * out).sum(0) / jnp.where(total > 0, total, 1)[..., None]
    return merged.astype(packed.dtype)


def _unpack(packed: Array) -> tuple[Array, Array]:
    """Output and log-sum-exp from `pack`, both in fp32."""
    if packed.dtype.itemsize == 4:
        out, lse = packed[..., :-1], lax.bitcast_convert_type(packed[..., -1], jnp.float32)
    else:
        low, high = (lax.bitcast_convert_type(packed[..., at], jnp.uint16).astype(jnp.uint32) for at in (-2, -1))
        out, lse = packed[..., :-2], lax.bitcast_convert_type(low | high << 16, jnp.float32)
    return out.astype(jnp.float32), lse
