"""Random weights, for benchmarks and tests of shapes."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from medha_jax.checkpoints.device_slices import Shardings, resolve
from medha_jax.checkpoints.errors import float_dtype
from medha_jax.models import Decoder, parameter_specs
from medha_jax.specs.model import Architecture


def random_parameters(arch: Architecture, dtype: Any, shardings: Shardings, seed: int) -> dict[str, jax.Array]:
    """Make every parameter with the model's initialisers, on the devices in its sharding.

    Values depend on `seed`, not on the sharding.

    Args:
        arch: of the model.
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
    # compiles in 4 to 6 s for any size of model; most of it is random number generation
    make = jax.jit(_make, static_argnums=(0, 1), out_shardings=resolved)
    made: dict[str, jax.Array] = make(arch, wanted, jax.random.key(seed))
    return made


def _make(arch: Architecture, dtype: Any, key: jax.Array) -> dict[str, jax.Array]:
    state = nnx.state(Decoder(arch, dtype, nnx.Rngs(key)), nnx.Param)
    return {".".join(map(str, path)): value.get_value() for path, value in nnx.to_flat_state(state)}
