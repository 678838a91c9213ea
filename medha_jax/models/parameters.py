"""How a parameter is declared: shape, dtype, logical axes and initialiser stand in one call."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Initialiser = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


@dataclass(frozen=True)
class ParameterSpec:
    """What a parameter is before it has a value. `axes` are logical names, one a dimension."""

    shape: tuple[int, ...]
    dtype: jnp.dtype
    axes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return int(jnp.dtype(self.dtype).itemsize) * math.prod(self.shape)


def declare(rngs: nnx.Rngs, init: Initialiser, dtype: Any, **axes: int) -> nnx.Param[jax.Array]:
    """Declare a parameter: `declare(rngs, init, dtype, embed=256, heads=8, head_dim=32)`.

    Args:
        rngs: source of the initial values.
        init: `(key, shape, dtype) -> array`.
        axes: logical axis name to size, in the order of the dimensions.
    """
    shape = tuple(axes.values())
    return nnx.Param(init(rngs.params(), shape, dtype), axes=tuple(axes))
