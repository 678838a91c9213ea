"""Rotation of queries and keys by their positions, as traced programs compute it; the rules are `specs.rope`."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rotary_angles(
    constants: Mapping[str, Array | np.ndarray],
    positions: Int[Array, " rows"],
    lengths: Int[Array, " rows"],
) -> tuple[Float[Array, "rows half"], Float[Array, "rows half"]]:
    """Cosine and sine of every row's rotation, fp32.

    Args:
        constants: `rotary_constants`.
        positions: place of each row in its sequence, in tokens.
        lengths: sequence length that a rule which follows the length sees: the whole prompt for its rows,
            `position + 1` for generated ones. That makes the result independent of how a prompt is cut.
    """
    beyond = jnp.maximum(lengths.astype(jnp.float32) - constants["rope.original"], 0)
    stretch = 1 + constants["rope.growth"] * beyond
    inverse = constants["rope.inverse"] * stretch[:, None] ** constants["rope.bend"]
    angles, scale = positions.astype(jnp.float32)[:, None] * inverse, constants["rope.scale"]
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
    x: Float[Array, "rows heads head_dim"], cos: Float[Array, "rows half"], sin: Float[Array, "rows half"]
) -> Float[Array, "rows heads head_dim"]:
    """Rotate each (first half, second half) pair of the head by its row's angle, computed in fp32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jax.lax.convert_element_type(turned, x.dtype)
