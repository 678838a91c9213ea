"""A model's parameters on a mesh: which axes are divided, padded or repeated."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from medha_jax.mesh import parameter_sharding
from medha_jax.models import ParameterSpec, parameter_specs
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture

KV_HEADS = "kv_heads"


def placed_specs(arch: Architecture, layout: Layout, dtype: jnp.dtype) -> dict[str, ParameterSpec]:
    """Every parameter with its sizes on the mesh: layers and vocabulary padded, KV heads repeated."""
    return {name: _placed(spec, arch, layout) for name, spec in parameter_specs(arch, dtype).items()}


def stored_shapes(arch: Architecture, layout: Layout, dtype: jnp.dtype) -> dict[str, tuple[int, ...]]:
    """Shapes in which to read parameters: padded like `placed_specs`, with the checkpoint's own KV heads."""
    own = parameter_specs(arch, dtype)
    return {
        name: tuple(
            size if axis == KV_HEADS else placed
            for size, axis, placed in zip(own[name].shape, spec.axes, spec.shape, strict=True)
        )
        for name, spec in placed_specs(arch, layout, dtype).items()
    }


def stored_shardings(
    arch: Architecture, layout: Layout, mesh: Mesh, dtype: jnp.dtype
) -> dict[str, jax.sharding.Sharding]:
    """Placement of parameters as they are read. If KV heads must be repeated, every device reads all of them."""
    repeat = layout.expanded_kv_heads(arch.kv_heads) != arch.kv_heads
    return {
        name: parameter_sharding(mesh, tuple("embed" if repeat and a == KV_HEADS else a for a in spec.axes))
        for name, spec in parameter_specs(arch, dtype).items()
    }


def place_parameters(
    parameters: Mapping[str, Array], arch: Architecture, layout: Layout, mesh: Mesh
) -> dict[str, Array]:
    """Pad and repeat parameters to their sizes on the mesh, and place them by their axes.

    `parameters` are keyed by dotted path and have the model's own shapes or those of `stored_shapes`.
    """
    specs = placed_specs(arch, layout, parameters["embedding"].dtype)
    placed = {}
    for name, value in parameters.items():
        spec = specs[name]
        sharding = parameter_sharding(mesh, spec.axes)
        if value.shape == spec.shape:
            placed[name] = jax.device_put(value, sharding)  # no copy if already placed so
        else:
            fit = partial(_fit, shape=spec.shape, axes=spec.axes)
            placed[name] = jax.jit(fit, out_shardings=sharding)(value)
    jax.block_until_ready(placed)
    return placed


def _placed(spec: ParameterSpec, arch: Architecture, layout: Layout) -> ParameterSpec:
    sizes = {
        "layers": layout.padded_layers(arch.layers),
        "vocab": layout.padded_vocab(arch.vocab),
        KV_HEADS: layout.expanded_kv_heads(arch.kv_heads),
    }
    shape = tuple(sizes.get(axis, size) for size, axis in zip(spec.shape, spec.axes, strict=True))
    return ParameterSpec(shape, spec.dtype, spec.axes)


def _fit(value: Array, shape: tuple[int, ...], axes: tuple[str, ...]) -> Array:
    for number, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        if axis == KV_HEADS:
            value = jnp.repeat(value, size // value.shape[number], axis=number)
        elif value.shape[number] != size:
            # a layer of zeros passes its input through; zero rows of the vocabulary are cut off after the head
            value = jnp.pad(value, [(0, size - n if at == number else 0) for at, n in enumerate(value.shape)])
    return value
