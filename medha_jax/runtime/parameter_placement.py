"""A model's parameters on a mesh: which axes are divided, padded or repeated, and which matrices are joined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from medha_jax.mesh import parameter_sharding, stage_share
from medha_jax.models import (
    ParameterSpec,
    is_layer_matrix,
    layers_apart,
    parameter_specs,
    placed_form,
    placed_sources,
    to_placed_form,
    with_layers_apart,
)
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture

KV_HEADS, HEAD, HEAD_VOCAB = "kv_heads", "head", "head_vocab"


def placed_specs(arch: Architecture, layout: Layout, dtype: jnp.dtype) -> dict[str, ParameterSpec]:
    """Every parameter as it is placed: layers and vocabulary padded, KV heads repeated, matrices joined.

    Each layer's matrices are arrays of their own.
    """
    return with_layers_apart(_stacked_specs(arch, layout, dtype), layout.spp)


def _stacked_specs(arch: Architecture, layout: Layout, dtype: jnp.dtype) -> dict[str, ParameterSpec]:
    """The same with each matrix of all layers in one array."""
    return placed_form(_fitted_specs(arch, layout, dtype))


def _fitted_specs(arch: Architecture, layout: Layout, dtype: jnp.dtype) -> dict[str, ParameterSpec]:
    """Every parameter of the checkpoint with its sizes on the mesh."""
    return {name: _fitted(spec, arch, layout) for name, spec in _divided(parameter_specs(arch, dtype)).items()}


def _divided(specs: Mapping[str, ParameterSpec]) -> dict[str, ParameterSpec]:
    """The same with a head that stages divide, too: each would copy its share of a larger one in every tick."""
    return {
        name: replace(spec, axes=(HEAD_VOCAB, *spec.axes[1:])) if name == HEAD else spec for name, spec in specs.items()
    }


def head_of(arch: Architecture) -> str:
    """The parameter that makes logits."""
    return "embedding" if arch.tied_embeddings else HEAD


def head_share(parameters: Mapping[str, Array], arch: Architecture, layout: Layout) -> Array:
    """This device's rows of the head, inside `shard_map`. Stages copy theirs of an embedding, which each has whole."""
    head = parameters[head_of(arch)]
    return stage_share(head, layout) if arch.tied_embeddings else head


def stored_shapes(arch: Architecture, layout: Layout, dtype: jnp.dtype) -> dict[str, tuple[int, ...]]:
    """Shapes in which to read parameters: padded like the placed ones, with the checkpoint's own KV heads."""
    own = parameter_specs(arch, dtype)
    return {
        name: tuple(
            size if axis == KV_HEADS else placed
            for size, axis, placed in zip(own[name].shape, spec.axes, spec.shape, strict=True)
        )
        for name, spec in _fitted_specs(arch, layout, dtype).items()
    }


def stored_shardings(
    arch: Architecture, layout: Layout, mesh: Mesh, dtype: jnp.dtype
) -> dict[str, jax.sharding.Sharding]:
    """Placement of parameters as they are read. If KV heads must be repeated, every device reads all of them."""
    repeat = layout.expanded_kv_heads(arch.kv_heads) != arch.kv_heads
    return {
        name: parameter_sharding(mesh, tuple("embed" if repeat and a == KV_HEADS else a for a in spec.axes))
        for name, spec in _divided(parameter_specs(arch, dtype)).items()
    }


def place_parameters(parameters: dict[str, Array], arch: Architecture, layout: Layout, mesh: Mesh) -> dict[str, Array]:
    """Pad and repeat parameters to their sizes on the mesh, join matrices, and place all by their axes.

    `parameters` are keyed by dotted path and have the model's own shapes or those of `stored_shapes`. They are taken
    out one by one, so that their memory is free as soon as the placed ones exist.
    """
    dtype = parameters["embedding"].dtype
    fitted, placed = _fitted_specs(arch, layout, dtype), dict[str, Array]()
    # largest first: while a matrix is joined or divided into layers, it exists twice
    for name, spec in sorted(_stacked_specs(arch, layout, dtype).items(), key=lambda item: -item[1].nbytes):
        sources, sharding = placed_sources(name), parameter_sharding(mesh, spec.axes)
        values = [parameters.pop(source) for source in sources]
        if sources == (name,) and values[0].shape == spec.shape and not name.endswith(".kernel"):
            placed[name] = jax.device_put(values[0], sharding)  # no copy if already placed so
            continue
        make = jax.jit(partial(_make, name=name, specs=fitted, devices=layout.tp), out_shardings=sharding)
        placed[name] = jax.block_until_ready(make(values))
        del values
        if is_layer_matrix(name):
            split = jax.jit(partial(layers_apart, stages=layout.spp), out_shardings=sharding)
            parts = jax.block_until_ready(split(placed.pop(name)))
            placed |= {f"{name}.{number}": part for number, part in enumerate(parts)}
    jax.block_until_ready(placed)
    return placed


def _make(values: list[Array], name: str, specs: Mapping[str, ParameterSpec], devices: int) -> Array:
    kinds = [specs[source] for source in placed_sources(name)]
    fit = [_fit(value, kind.shape, kind.axes) for value, kind in zip(values, kinds, strict=True)]
    return to_placed_form(name, fit, specs, devices)


def _fitted(spec: ParameterSpec, arch: Architecture, layout: Layout) -> ParameterSpec:
    sizes = {
        "layers": layout.padded_layers(arch.layers),
        "vocab": layout.padded_vocab(arch.vocab),
        HEAD_VOCAB: layout.padded_vocab(arch.vocab),
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
