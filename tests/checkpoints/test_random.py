"""Weights nobody trained."""

from __future__ import annotations

import pytest

from medha_jax.checkpoints import CheckpointError, random_parameters
from tests.checkpoints.small_models import architecture, one_device, run_on_eight_devices

EIGHT_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from medha_jax.checkpoints import random_parameters
from medha_jax.models import parameter_specs
from tests.checkpoints.small_models import architecture, one_device, same_bits

arch = architecture("qwen2")
specs = parameter_specs(arch, "float32")
params = random_parameters(arch, "float32", one_device(), seed=7)
assert {name: (value.shape, value.dtype) for name, value in params.items()} == {
    name: (spec.shape, spec.dtype) for name, spec in specs.items()
}
up = params["layers.mlp.up.kernel"]
assert (params["norm.scale"] == 1).all() and (params["layers.attention.query.bias"] == 0).all()
assert 0.018 < jnp.std(up) < 0.022 and not (up[0] == up[1]).any()
assert not same_bits(params, random_parameters(arch, "float32", one_device(), seed=8))

mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("x", "y", "z"), axis_types=(AxisType.Auto,) * 3)
axes = {"layers": "x", "heads": "y", "kv_heads": "y", "ffn": "y", "vocab": ("x", "y")}
shardings = {
    path: NamedSharding(mesh, PartitionSpec(*(axes.get(axis) for axis in spec.axes))) for path, spec in specs.items()
}
sharded = random_parameters(arch, "float32", shardings, seed=7)
assert {path: value.sharding for path, value in sharded.items()} == shardings
assert same_bits(sharded, params)
print("done")
"""


def test_values_come_from_the_initialisers_and_the_seed_alone() -> None:
    run = run_on_eight_devices(EIGHT_DEVICES)
    assert run.stdout == "done\n", run.stderr


def test_arguments_are_checked() -> None:
    with pytest.raises(CheckpointError, match="dtype 'int8' is not supported"):
        random_parameters(architecture("qwen3"), "int8", one_device(), seed=0)
    with pytest.raises(CheckpointError, match="no sharding is given for parameter embedding"):
        random_parameters(architecture("qwen3"), "float32", {}, seed=0)
