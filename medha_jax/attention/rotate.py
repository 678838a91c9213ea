"""Rotation of queries and keys by position (RoPE, arXiv 2104.09864) in XLA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Angles = tuple[Array, Array]  # cosine and sine of each row's rotation, fp32 `[rows, head_dim / 2]` each


def rotate(
    x: Float[Array, "rows heads head_dim"], cos: Float[Array, "rows half"], sin: Float[Array, "rows half"]
) -> Float[Array, "rows heads head_dim"]:
    """Rotate each pair (first half, second half) of a head by its row's angle, in fp32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jax.lax.convert_element_type(turned, x.dtype)
