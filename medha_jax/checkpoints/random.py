"""Weights nobody trained: for benchmarks and for work that only needs shapes."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from medha_jax.checkpoints.device_slices import Shardings, resolve
from medha_jax.checkpoints.errors import float_dtype
from medha_jax.models import Decoder, parameter_specs
from medha_jax.specs.model import Architecture


def random_parameters(arch: Architecture, dtype: Any, shardings: Shardings, seed: int) -> dict[str, jax.Array]:
    """Every parameter from the model's own initialisers, made on the devices in its sharding.

    Values depend on `seed` alone, not on how they are sharded.

    Args:
        dtype: bfloat16, float16 or float32.
        shardings: one for every dotted path of `parameter_specs`, or a single one for all.
        seed: any integer that fits 32 bits.

    Returns:
        The arrays by dotted path, shapes as in `parameter_specs`.

    Raises:
        CheckpointError: the dtype is not supported, or a sharding is missing or does not fit.
    """
    wanted = float_dtype(dtype)
    resolved = resolve(shardings, parameter_specs(arch, wanted))
    # compiles in 4 to 6 s whatever the size of the model, most of it random number generation
    make = jax.jit(_make, static_argnums=(0, 1), out_shardings=resolved)
    return make(arch, wanted, jax.random.key(seed))


def _make(arch: Architecture, dtype: Any, key: jax.Array) -> dict[str, jax.Array]:
    state = nnx.state(Decoder(arch, dtype, nnx.Rngs(key)), nnx.Param)
    return {".".join(map(str, path)): value.get_value() for path, value in nnx.to_flat_state(state)}
