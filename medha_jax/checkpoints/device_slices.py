"""Arrays on devices, each device receiving only its slice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from medha_jax.checkpoints.errors import CheckpointError
from medha_jax.checkpoints.stored_tensors import Index, bounded
from medha_jax.models import ParameterSpec

Shardings = Mapping[str, Sharding] | Sharding
Shapes = Mapping[str, tuple[int, ...]]


def enlarged(specs: Mapping[str, ParameterSpec], shapes: Shapes | None) -> dict[str, ParameterSpec]:
    """The specs with the shapes of `shapes`."""
    return {name: replace(spec, shape=(shapes or {}).get(name, spec.shape)) for name, spec in specs.items()}


def zero_filled(
    read: Callable[[Index], np.ndarray], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Callable[[Index], np.ndarray]:
    """Extend `read` to indices beyond the stored `shape`; values there are 0."""

    def filled(index: Index) -> np.ndarray:
        inside = tuple(slice(part.start, min(part.stop, size)) for part, size in zip(index, shape, strict=True))
        if inside == index:
            return read(index)
        values = np.zeros([part.stop - part.start for part in index], dtype)
        if all(part.start < part.stop for part in inside):
            values[tuple(slice(0, part.stop - part.start) for part in inside)] = read(inside)
        return values

    return filled


def resolve(shardings: Shardings, specs: Mapping[str, ParameterSpec]) -> dict[str, Sharding]:
    """The sharding of every parameter, checked against its shape.

    Raises:
        CheckpointError: a parameter has no sharding, or its shape does not divide over the devices.
    """
    resolved = {}
    for name, spec in specs.items():
        sharding = shardings if isinstance(shardings, Sharding) else shardings.get(name)
        if sharding is None:
            raise CheckpointError(f"no sharding is given for parameter {name}; give one for every parameter")
        try:
            sharding.shard_shape(spec.shape)
        except ValueError:
            raise CheckpointError(
                f"parameter {name} of shape {list(spec.shape)} cannot be divided by {sharding}; choose a "
                "mesh whose axes divide the model's sizes"
            ) from None
        resolved[name] = sharding
    return resolved


def place(
    shape: tuple[int, ...], dtype: np.dtype[Any], sharding: Sharding, read: Callable[[Index], np.ndarray]
) -> jax.Array:
    """Make a global array of slices from `read`.

    Each distinct slice is read once, sent to every device that holds it, and dropped. So the host keeps one slice at a
    time. (`jax.make_array_from_callback` reads once per device, replicas included, and keeps all slices to the end.)

    Args:
        shape: of the global array.
        dtype: of the values that `read` returns.
        sharding: of the array.
        read: returns the values of a slice; called for slices of this process's devices only.
    """
    owners: dict[tuple[tuple[int, int], ...], list[jax.Device]] = defaultdict(list)
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        owners[tuple((part.start, part.stop) for part in bounded(index, shape))].append(device)
    pieces: list[jax.Array] = []
    for bounds, devices in owners.items():
        values = read(tuple(slice(start, stop) for start, stop in bounds))
        copies = [
            jax.device_put(values, SingleDeviceSharding(device, memory_kind=sharding.memory_kind)) for device in devices
        ]
        pieces += [copy.block_until_ready() for copy in copies]
    return jax.make_array_from_single_device_arrays(shape, sharding, pieces, dtype=dtype)


@jax.jit
def _finite(values: jax.Array) -> jax.Array:
    return jnp.isfinite(values).all()


def check_finite(name: str, array: jax.Array) -> None:
    """Check this process's slices of a parameter that was cast to float16.

    Raises:
        CheckpointError: a value is not finite.
    """
    if not all(bool(_finite(shard.data)) for shard in array.addressable_shards):
        raise CheckpointError(
            f"parameter {name} holds values that are not finite in float16, whose largest is 65504; load it "
            "as bfloat16 or float32"
        )
