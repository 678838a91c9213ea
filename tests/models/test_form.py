"""A layer gives the same result in every form."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from medha_jax.checkpoints import random_parameters
from medha_jax.models import (
    Form,
    in_parts,
    layer_graph,
    of_some_layers,
    parameter_specs,
    placed_form,
    placed_sources,
    to_placed_form,
)
from medha_jax.models.form import STORED
from medha_jax.specs.model import Architecture
from tests.small import CONFIG

QWEN2 = {**CONFIG, "architectures": ["Qwen2ForCausalLM"]}
QWEN3 = {**CONFIG, "architectures": ["Qwen3ForCausalLM"]}
BIASED = {**CONFIG, "attention_bias": True, "mlp_bias": True}
ROWS = 5


def attend(cache: None, query: Array, key: Array, value: Array) -> tuple[Array, None]:
    """Stands for attention: every head of it depends on all three."""
    times = query.shape[1] // key.shape[1]
    return query + jnp.repeat(key * jnp.flip(value, 0), times, 1), cache


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("config", [CONFIG, QWEN2, QWEN3, BIASED], ids=["llama", "qwen2", "qwen3", "biased"])
def test_a_layer_is_the_same_in_every_form(config: dict[str, Any], columns: bool) -> None:
    arch = Architecture.from_config(config)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    draw = np.random.default_rng(0)
    stored = {
        name: jnp.asarray(draw.normal(size=value.shape), jnp.float32) * 0.2
        for name, value in random_parameters(arch, "float32", one, seed=0).items()
        if name.startswith("layers.")
    }
    specs = {name: spec for name, spec in parameter_specs(arch, "float32").items() if name in stored}
    placed = {
        name: to_placed_form(name, [stored[source] for source in placed_sources(name)], specs, 1)
        for name in placed_form(specs)
    }
    assert {name: value.shape for name, value in placed.items()} == {
        name: spec.shape for name, spec in placed_form(specs).items()
    }
    x = jnp.asarray(draw.normal(size=(ROWS, arch.embed)), jnp.float32)

    def first(arrays: dict[str, Array]) -> dict[str, Array]:
        return {name.removeprefix("layers."): value[0] for name, value in arrays.items()}

    (expected,), _ = layer_graph(arch, jnp.float32)(first(stored))((x,), None, attend)
    form = Form(placed=True, columns=columns, query_heads=arch.heads)
    (got,), _ = layer_graph(arch, jnp.float32, form)(first(placed))((form.turned(x),), None, attend)
    np.testing.assert_allclose(form.turned(got), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("config", [CONFIG, QWEN3], ids=["llama", "qwen3"])
@settings(max_examples=6, derandomize=True)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), which=st.sampled_from(["stored", "rows", "columns"]))
def test_a_layer_is_the_same_with_its_rows_in_parts(config: dict[str, Any], sizes: list[int], which: str) -> None:
    arch = Architecture.from_config(config)
    form = STORED if which == "stored" else Form(placed=True, columns=which == "columns", query_heads=arch.heads)
    declared = parameter_specs(arch, "float32")
    specs = declared if form == STORED else placed_form(declared)
    draw, first = np.random.default_rng(0), "layers."
    arrays = {
        name.removeprefix(first): jnp.asarray(draw.normal(size=spec.shape[1:]), jnp.float32) * 0.2
        for name, spec in specs.items()
        if name.startswith(first)
    }
    x = jnp.asarray(draw.normal(size=(sum(sizes), arch.embed)), jnp.float32)
    layer = layer_graph(arch, jnp.float32, form)(arrays)
    (expected,), _ = layer((form.turned(x),), None, attend, twice)
    got, _ = layer(tuple(map(form.turned, in_parts(x, sizes))), None, attend, twice)
    assert [form.rows(part) for part in got] == sizes
    whole = jnp.concatenate([form.turned(part) for part in got])
    np.testing.assert_allclose(whole, form.turned(expected), rtol=2e-5, atol=2e-5)


def twice(x: Array) -> Array:
    """Stands for a sum over two devices."""
    return x + x


def test_each_device_has_its_share_of_every_joined_matrix() -> None:
    arch = Architecture.from_config(CONFIG)  # 4 query heads, 2 KV heads of 16
    specs = parameter_specs(arch, "float32")
    name = "layers.attention.query_key_value.kernel"
    sources = [jnp.full(specs[source].shape, number) for number, source in enumerate(placed_sources(name))]
    sources[0] = sources[0] + 0.1 * jnp.arange(4)[:, None]  # the number of the query head
    joined = to_placed_form(name, sources, specs, 2)
    assert joined.shape == (2, 8, 16, 64)
    np.testing.assert_allclose(joined[0, :, 0, 0], [0, 0.1, 1, 2, 0.2, 0.3, 1, 2], rtol=1e-6)


def test_the_matrices_of_some_layers_count_from_0() -> None:
    parameters = {"head": "h", "layers.norm.scale": "n", **{f"layers.mlp.down.kernel.{n}": n for n in range(12)}}
    assert of_some_layers(parameters, 9, 3) == {
        "head": "h",
        "layers.norm.scale": "n",
        "layers.mlp.down.kernel.0": 9,
        "layers.mlp.down.kernel.1": 10,
        "layers.mlp.down.kernel.2": 11,
    }
    assert of_some_layers(parameters, 0, 12) == parameters
