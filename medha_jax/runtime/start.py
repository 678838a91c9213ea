"""Start a runtime from a configuration."""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from medha_jax.checkpoints import load_parameters
from medha_jax.config import RuntimeConfig, claim_device_memory
from medha_jax.mesh import bind_cpu_threads, build_mesh, request_cpu_devices
from medha_jax.runtime.dtype import choose_dtype
from medha_jax.runtime.executables import open_cache
from medha_jax.runtime.executor import MeshExecutor
from medha_jax.runtime.memory import check_memory, default_pool_tokens, host_tier_bytes, plan_memory, usable_bytes
from medha_jax.runtime.parameter_placement import (
    place_parameters,
    placed_specs,
    stored_shapes,
    stored_shardings,
)
from medha_jax.runtime.programs import Programs
from medha_jax.runtime.shape_compiler import Report
from medha_jax.specs.layout import Layout, check_layout
from medha_jax.specs.model import Architecture
from medha_jax.specs.sizes import with_gpu_rows, without_unused_slices


def open_executor(config: RuntimeConfig, report: Report, complete: bool = True) -> MeshExecutor:
    """Read the model, place it on the mesh and compile its shapes. `report` is called with each line of progress.

    Without `complete` some shapes are still missing; see `MeshExecutor`.

    Raises:
        UnsupportedModelError: the architecture or one of its settings is not supported.
        CheckpointError: the weights do not fit the architecture, or cannot be read.
        LayoutError: the layout does not fit the devices or the model.
        LaunchError: the configured attention cannot run here.
    """
    arch = Architecture.from_directory(config.model)
    for note in arch.notes:
        report(f"warning: {note}")
    config = without_unused_slices(config, arch.context)
    layout = Layout.of(config.mesh)
    check_layout(arch, layout)
    request_cpu_devices(layout.devices)
    claim_device_memory()
    mesh = build_mesh(layout)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    if config.bind_threads and (bound := bind_cpu_threads()):
        report(f"bound {bound} threads to a core each")
    open_cache(config.compilation_cache, on_cpu, report)  # before the first program, that places parameters, too
    if not on_cpu:
        config = with_gpu_rows(config)
    dtype = choose_dtype(config, arch, report)
    config = dataclasses.replace(config, dtype=dtype.name)
    local = jax.local_devices()
    host_tier = host_tier_bytes(config.host_kv_gib)
    usable = usable_bytes(local[0], len(local), config.mesh.memory_fraction, host_tier)
    config = _with_pool(config, arch, dtype, mesh, usable)
    programs = Programs(config, arch, dtype, mesh)
    plan = plan_memory(programs, usable)
    check_memory(plan, programs, jax.device_count())
    attention = programs.attention
    where = f"mesh {layout} on {layout.devices} x {local[0].device_kind}"
    options = ", ".join(f"{name}={value}" for name, value in programs.compiler_options.items())
    compiler = [f"XLA options: {options}"] if options else []
    for line in (where, f"attention: {attention.name} ({attention.why})", *compiler, *plan.lines()):
        report(line)
    wished = min(config.max_context or arch.context, arch.context)
    if programs.sizes.context < wished:
        report(f"a request may have {programs.sizes.context:,} tokens, not {wished:,}: the KV pool holds no more")
    started = time.perf_counter()
    shardings = stored_shardings(arch, layout, mesh, dtype)
    stored = load_parameters(config.model, arch, dtype, shardings, stored_shapes(arch, layout, dtype), report)
    parameters = place_parameters(stored, arch, layout, mesh)
    del stored
    size = sum(spec.nbytes for spec in placed_specs(arch, layout, dtype).values())
    report(
        f"loaded {arch.family}: {arch.layers} layers, {size / 2**20:.1f} MiB of {dtype} weights "
        f"in {time.perf_counter() - started:.1f} s"
    )
    return MeshExecutor(config, arch, parameters, mesh, report, complete)


def _with_pool(
    config: RuntimeConfig, arch: Architecture, dtype: jnp.dtype, mesh: Mesh, usable: int | None
) -> RuntimeConfig:
    """The configuration with a pool that fits the memory, if it states none; the same in every process."""
    if config.pool_tokens is not None:
        return config
    programs = Programs(config, arch, dtype, mesh)
    plan = plan_memory(programs, usable)
    tokens = default_pool_tokens(plan, config.slots, mesh.devices.flat[0].platform == "cpu")
    if jax.process_count() > 1:
        tokens = int(multihost_utils.process_allgather(np.int32(min(tokens, 2**31 - 1))).min())
    return dataclasses.replace(config, pool_tokens=tokens)
