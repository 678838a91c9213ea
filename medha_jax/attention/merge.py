"""Merging attention over disjoint parts of a request's KV: exact, in fp32 (log-sum-exp weights, arXiv 2409.17264)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float


def pack(out: Float[Array, "rows heads head_dim"], lse: Float[Array, "rows heads"]) -> Array:
    """Output and log-sum-exp in one array, so that one collective carries both.

    The bits of the fp32 log-sum-exp follow the output's `head_dim` elements: as one element of a 4-byte dtype, or two
    of a 2-byte dtype.
    """
    words = lax.bitcast_convert_type(lse, out.dtype)
    return jnp.concatenate([out, words if words.ndim == 3 else words[..., None]], axis=-1)


def merge(packed: Float[Array, "groups rows heads packed"]) -> Float[Array, "rows heads head_dim"]:
    """`o = sum_g e^(lse_g - m) o_g / sum_g e^(lse_g - m)`, `m` the largest `lse_g`; 0 where no group saw a token."""
    width = 4 // packed.dtype.itemsize
    out = packed[..., :-width].astype(jnp.float32)
    words = packed[..., -width:]
    lse = lax.bitcast_convert_type(words if width > 1 else words[..., 0], jnp.float32)
    top = lse.max(0)
    weights = jnp.where(jnp.isneginf(lse), 0, jnp.exp(lse - jnp.where(jnp.isneginf(top), 0, top)))
    total = weights.sum(0)
    merged = (weights[..., None] * out).sum(0) / jnp.where(total > 0, total, 1)[..., None]
    return merged.astype(packed.dtype)
