"""Counted sizes against those of the runtime: its memory plan, and the collectives of a traced tick."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import pytest

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.inspection import inspect_layout
from medha_jax.mesh import build_mesh
from medha_jax.models import parameter_specs
from medha_jax.runtime.memory import plan_memory
from medha_jax.runtime.programs import Programs
from medha_jax.simulate.device_sizes import DeviceSizes
from medha_jax.simulate.hardware import SpecError
from medha_jax.simulate.named_models import load_model, model_names
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture
from tests.small import CONFIG

BUCKETS = Buckets(decode=(2, 4), prefill=(16,), chunks=3, slices=())
SHARED = Buckets(decode=(3,), prefill=(8,), chunks=2, slices=())
ODD = {**CONFIG, "num_hidden_layers": 5, "vocab_size": 263}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": ODD,
    "biases": {**ODD, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "qwen2": {**ODD, "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {**ODD, "architectures": ["Qwen3ForCausalLM"]},
}


def mesh_of(layout: Layout, **settings: Any) -> MeshConfig:
    mesh = MeshConfig(
        tp=layout.tp,
        spp=layout.spp,
        kvp=layout.kvp,
        page_size=16,
        tokens_per_group=512,
        buckets=BUCKETS,
        shared_buckets=SHARED,
    )
    return replace(mesh, **settings)


@pytest.mark.parametrize("name", model_names())
def test_parameters_are_those_of_the_decoder(name: str) -> None:
    specs = parameter_specs(load_model(name), "bfloat16")
    assert 2 * load_model(name).parameters == sum(spec.nbytes for spec in specs.values())


def test_known_sizes_of_known_models() -> None:
    billions = {name: load_model(name).parameters / 1e9 for name in model_names()}
    assert billions["llama3-8b"] == pytest.approx(8.03, abs=0.005)
    assert billions["llama3-70b"] == pytest.approx(70.55, abs=0.005)
    assert billions["llama3-405b"] == pytest.approx(405.85, abs=0.005)
    assert billions["qwen3-32b"] == pytest.approx(32.76, abs=0.005)
    assert DeviceSizes(load_model("llama3-8b"), MeshConfig()).kv_token_bytes == 128 * 1024
    assert DeviceSizes(load_model("llama3-70b"), MeshConfig()).kv_token_bytes == 320 * 1024


@pytest.mark.parametrize(
    "layout", [Layout(), Layout(2, 2, 2), Layout(4, 2, 1), Layout(1, 4, 2), Layout(2, 1, 4)], ids=str
)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("slices", [(), (8, 64)])
def test_bytes_of_a_device_are_those_of_the_memory_plan(
    layout: Layout, family: str, dtype: str, slices: tuple[int, ...]
) -> None:
    slots, pool, context = 4, 2100, 2000
    arch, mesh = Architecture.from_config(FAMILIES[family]), mesh_of(layout, buckets=replace(BUCKETS, slices=slices))
    config = RuntimeConfig(mesh=mesh, slots=slots, pool_tokens=pool, max_context=context)
    plan = plan_memory(Programs(config, arch, jnp.dtype(dtype), build_mesh(layout)), None)
    sizes = DeviceSizes(arch, mesh, dtype)
    assert sizes.weight_bytes == plan.weights
    assert sizes.pool_bytes(pool) == plan.pool
    assert sizes.kv_token_bytes * 16 == plan.pool_per_page
    assert sizes.register_bytes == plan.register
    assert sizes.held_bytes == plan.held
    assert sizes.slot_bytes(slots, context) == plan.slots


def counted(collectives: Iterable[Any]) -> Counter[tuple[str, str, int]]:
    """How often what is sent, by axis, kind and bytes: rows and columns of hidden states are the same bytes."""
    found: Counter[tuple[str, str, int]] = Counter()
    for one in collectives:
        found[one.axis, one.kind, one.nbytes] += one.count
    return found


def test_what_a_device_sends_is_what_its_compiled_tick_sends() -> None:
    """The largest shape of a 2x2x2 mesh, with shared rows; layers and vocabulary do not divide evenly."""
    layout = Layout(2, 2, 2)
    mesh = mesh_of(layout, shared_buckets=SHARED)
    config = RuntimeConfig(mesh=mesh, slots=4, compilation_cache=None)
    arch = Architecture.from_config(ODD)
    report = inspect_layout(config, arch, jnp.dtype("float32"), choose=lambda all_shapes: all_shapes[-1:])
    (tick,) = report.buckets
    sizes = DeviceSizes(arch, mesh, "float32")
    shape = sizes.buckets[-1]
    assert tick.rows == shape.rows
    assert tick.shared_rows == shape.shared.rows
    assert counted(one for one in tick.collectives if one.axis) == counted(sizes.collectives(shape))
    assert report.attention_flops == sizes.attention_flops
    flops = 2 * (shape.rows * sizes.layers * sizes.layer_weights + shape.samples * sizes.head_weights)
    assert tick.matmul_flops == flops


def test_what_a_device_sends_is_what_its_compiled_slice_sends() -> None:
    """One layer of the largest shape of a 2x2x2 mesh, with a shared chunk beside those of the groups."""
    buckets, shared = replace(BUCKETS, slices=(32,)), replace(SHARED, slices=(8,))
    mesh = mesh_of(Layout(2, 2, 2), buckets=buckets, shared_buckets=shared)
    config = RuntimeConfig(mesh=mesh, slots=4, compilation_cache=None)
    arch = Architecture.from_config(ODD)
    report = inspect_layout(config, arch, jnp.dtype("float32"), choose=lambda all_shapes: all_shapes[-1:])
    (found,) = (one for one in report.buckets if one.slice_layers)
    sizes = DeviceSizes(arch, mesh, "float32")
    shape = sizes.slice_shapes[-1]
    assert (found.rows, found.shared_rows) == (shape.rows, shape.shared.rows) == (40, 8)
    sent = counted(one for one in found.collectives if one.axis)
    assert sent == counted(sizes.slice_collectives(shape, 1))


def test_a_layout_that_does_not_divide_is_refused() -> None:
    arch = Architecture.from_config(ODD)
    with pytest.raises(SpecError, match="heads 4 is not divisible by tp=3"):
        DeviceSizes(arch, mesh_of(Layout(3)))
    with pytest.raises(SpecError, match="dtype is 'int8'"):
        DeviceSizes(arch, mesh_of(Layout()), "int8")
