"""A small random model and a runtime for it, shared by tests that need one."""

from __future__ import annotations

from typing import Any

from medha_jax.checkpoints import random_parameters
from medha_jax.config import Buckets, RuntimeConfig
from medha_jax.mesh import Layout, build_mesh, parameter_sharding
from medha_jax.models import Architecture, parameter_specs
from medha_jax.runtime import MeshExecutor

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


def small_executor(**settings: Any) -> MeshExecutor:
    """A runtime on one device with random fp32 weights; `settings` are those of RuntimeConfig."""
    arch = Architecture.from_config(CONFIG)
    mesh = build_mesh(Layout())
    specs = parameter_specs(arch, "float32")
    shardings = {name: parameter_sharding(mesh, spec.axes) for name, spec in specs.items()}
    parameters = random_parameters(arch, "float32", shardings, seed=0)
    # wider than the initialiser's 0.02, so that greedy choices are decisive
    parameters = {name: value * 8 if value.ndim > 2 else value for name, value in parameters.items()}
    defaults: dict[str, Any] = dict(
        slots=8,
        page_size=16,
        pool_tokens=4096,
        buckets=Buckets(decode=(8,), prefill=(32, 128), chunks=4),
        keep_logits=True,
        compilation_cache=None,
    )
    return MeshExecutor(RuntimeConfig(**{**defaults, **settings}), arch, parameters, mesh, lambda line: None)
