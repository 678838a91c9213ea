"""A small random model and a runtime for it, shared by tests that need one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medha_jax.checkpoints import random_parameters
from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.mesh import build_mesh
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.parameter_placement import place_parameters
from medha_jax.runtime.shape_compiler import Report
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 2048,
}


ONE_SHAPE = Buckets(decode=(8,), prefill=(64,), chunks=4, mixed_only=True, slices=())
MESH_SETTINGS = {field.name for field in dataclasses.fields(MeshConfig)}


def small_executor(
    changes: dict[str, Any] | None = None,
    complete: bool = True,
    report: Report = lambda line: None,
    dtype: str = "float32",
    **settings: Any,
) -> MeshExecutor:
    """A runtime with random weights.

    Args:
        changes: to the model's CONFIG.
        dtype: of the weights; in bfloat16 they are the rounded ones of float32.
        complete: whether it compiles every shape at once.
        report: called with each line of its start.
        settings: of RuntimeConfig and MeshConfig.
    """
    arch = Architecture.from_config({**CONFIG, **(changes or {})})
    defaults: dict[str, Any] = dict(
        slots=8,
        page_size=16,
        pool_tokens=4096,
        buckets=ONE_SHAPE,
        keep_logits=True,
        compilation_cache=None,
    )
    chosen = {**defaults, **settings}
    mesh_config = MeshConfig(**{name: chosen.pop(name) for name in MESH_SETTINGS & set(chosen)})
    layout = Layout.of(mesh_config)
    mesh = build_mesh(layout)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    parameters = random_parameters(arch, "float32", one, seed=0)
    # wider than the initialiser's 0.02, so that greedy choices are decisive
    wide = {
        name: (np.asarray(value) * (8 if value.ndim > 2 else 1)).astype(jnp.dtype(dtype))
        for name, value in parameters.items()
    }
    placed = place_parameters(wide, arch, layout, mesh)
    return MeshExecutor(RuntimeConfig(mesh=mesh_config, **chosen), arch, placed, mesh, report, complete)
