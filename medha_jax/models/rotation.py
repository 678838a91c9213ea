"""Angles of the rotation of queries and keys by position, in traced programs. The rules are in `specs.rope`."""

from __future__ import annotations

from collections.abc import Mapping

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
        constants: from `rotary_constants`.
        lengths: sequence length for rules that depend on it: the whole prompt's for prompt rows, `position + 1` for
            generated ones. So the result does not depend on how a prompt is cut into chunks.
    """
    beyond = jnp.maximum(lengths.astype(jnp.float32) - constants["rope.original"], 0)
    stretch = 1 + constants["rope.growth"] * beyond
    inverse = constants["rope.inverse"] * stretch[:, None] ** constants["rope.bend"]
    angles, scale = positions.astype(jnp.float32)[:, None] * inverse, constants["rope.scale"]
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale
