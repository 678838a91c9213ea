"""Declaration of parameters: one call gives shape, dtype, logical axes and initialiser."""

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
    """Description of a parameter without its value. `axes` has one logical name per dimension."""

    shape: tuple[int, ...]
    dtype: jnp.dtype
    axes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return int(jnp.dtype(self.dtype).itemsize) * math.prod(self.shape)


def declare(rngs: nnx.Rngs, init: Initialiser, dtype: Any, **axes: int) -> nnx.Param[jax.Array]:
    """Declare a parameter: `declare(rngs, init, dtype, embed=256, heads=8, head_dim=32)`.

    `axes` gives the size of each logical axis, in the order of the dimensions.
    """
    shape = tuple(axes.values())
    return nnx.Param(init(rngs.params(), shape, dtype), axes=tuple(axes))
