"""Parameters read from files into layouts that do not divide the model."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from medha_jax.checkpoints import convert, load_parameters, random_parameters, write_huggingface
from medha_jax.mesh import build_mesh
from medha_jax.models import is_layer_matrix, parameter_specs, placed_sources
from medha_jax.runtime.parameter_placement import place_parameters, placed_specs, stored_shapes, stored_shardings
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture
from tests.small import CONFIG

MODEL = {**CONFIG, "num_hidden_layers": 3, "vocab_size": 251}
ARCH = Architecture.from_config(MODEL)
FP32 = jnp.dtype("float32")


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same random weights as safetensors and converted."""
    folder = tmp_path_factory.mktemp("weights")
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    write_huggingface(folder / "hf", MODEL, random_parameters(ARCH, FP32, one, seed=4))
    convert(folder / "hf", folder / "orbax")
    return {"hf": folder / "hf", "orbax": folder / "orbax"}


@pytest.mark.parametrize("kind", ["hf", "orbax"])
@pytest.mark.parametrize("layout", [Layout(4, 2, 1), Layout(1, 2, 2), Layout(2, 1, 4)], ids=str)
def test_files_fill_up_and_repeat(directories: dict[str, Path], kind: str, layout: Layout) -> None:
    mesh = build_mesh(layout)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    whole = load_parameters(directories[kind], ARCH, FP32, one)
    shardings, shapes = stored_shardings(ARCH, layout, mesh, FP32), stored_shapes(ARCH, layout, FP32)
    stored = load_parameters(directories[kind], ARCH, FP32, shardings, shapes)
    placed = place_parameters(stored, ARCH, layout, mesh)
    specs = placed_specs(ARCH, layout, FP32)
    assert not stored, "their memory is free"
    assert {name: value.shape for name, value in placed.items()} == {name: spec.shape for name, spec in specs.items()}
    own = placed["layers.mlp.down.kernel.0"]
    assert own.addressable_shards[0].data.shape[0] == 1
    assert f"layers.mlp.down.kernel.{-(-3 // layout.spp)}" not in placed
    share = placed["head"].shape[0] // (layout.tp * layout.spp)
    assert {shard.data.shape for shard in placed["head"].addressable_shards} == {(share, ARCH.embed)}, (
        "no stage cuts it"
    )
    for name, value in _stacked(placed).items():
        sources = [_outputs_first(source, _repeated(source, whole[source], layout)) for source in placed_sources(name)]
        shares = [np.split(source, layout.tp, axis=1) for source in sources] if len(sources) > 1 else [sources]
        own = np.concatenate(
            [share for device in zip(*shares, strict=True) for share in device], axis=min(value.ndim - 1, 1)
        )
        got = np.asarray(value)
        inside = tuple(slice(0, size) for size in own.shape)
        np.testing.assert_array_equal(got[inside], own, name)
        assert got.sum(dtype=np.float64) == pytest.approx(own.sum(dtype=np.float64), abs=1e-3), "the rest is zeros"


def _stacked(placed: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """The same parameters with the matrices of all layers in one array, stage after stage."""
    parts: dict[str, list[np.ndarray]] = {}
    for name, value in placed.items():
        path, _, number = name.rpartition(".")
        parts.setdefault(path if number.isdigit() else name, []).append(np.asarray(value))
    apart = {name: np.stack(values, axis=1) for name, values in parts.items() if is_layer_matrix(name)}
    whole = {name: values[0] for name, values in parts.items() if name not in apart}
    return whole | {name: value.reshape(-1, *value.shape[2:]) for name, value in apart.items()}


def _repeated(name: str, value: Array, layout: Layout) -> np.ndarray:
    """A parameter with as many KV heads as the layout has."""
    axes = parameter_specs(ARCH, FP32)[name].axes
    if "kv_heads" not in axes:
        return np.asarray(value)
    times = layout.expanded_kv_heads(ARCH.kv_heads) // ARCH.kv_heads
    return np.repeat(np.asarray(value), times, axes.index("kv_heads"))


def _outputs_first(name: str, value: np.ndarray) -> np.ndarray:
    """A layer's matrix `[layers, outputs, inputs]`."""
    if not name.endswith(".kernel"):
        return value
    inputs = 2 if name.endswith("attention.output.kernel") else 1
    order = (0, *range(1 + inputs, value.ndim), *range(1, 1 + inputs))
    return value.transpose(order)
