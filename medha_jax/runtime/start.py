"""From a configuration to a runtime that is ready to take plans."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from medha_jax.checkpoints import load_parameters
from medha_jax.config import RuntimeConfig
from medha_jax.mesh import Layout, build_mesh, parameter_sharding
from medha_jax.models import Architecture, parameter_specs
from medha_jax.runtime.executor import MeshExecutor, Report


def resolve_dtype(dtype: str) -> jnp.dtype:
    """The dtype that `auto` stands for on the present backend."""
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(dtype)


def open_executor(config: RuntimeConfig, report: Report) -> MeshExecutor:
    """Read the model, place it on the mesh and compile every shape.

    Args:
        config: what to build.
        report: told what is done, a line at a time.

    Raises:
        UnsupportedModelError: the architecture or a setting of it is not supported.
        CheckpointError: the weights do not fit the architecture, or cannot be read.
        ValueError: the devices are too few.
    """
    arch = Architecture.from_directory(config.model)
    dtype = resolve_dtype(config.dtype)
    mesh = build_mesh(Layout())
    specs = parameter_specs(arch, dtype)
    started = time.perf_counter()
    shardings = {name: parameter_sharding(mesh, spec.axes) for name, spec in specs.items()}
    parameters = load_parameters(config.model, arch, dtype, shardings)
    size = sum(spec.nbytes for spec in specs.values())
    report(
        f"loaded {arch.family}: {arch.layers} layers, {size / 2**20:.1f} MiB of {dtype} weights "
        f"in {time.perf_counter() - started:.1f} s"
    )
    return MeshExecutor(config, arch, parameters, mesh, report)
