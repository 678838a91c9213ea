"""Inspect a layout: memory, traffic and work, without weights, requests or its devices.

Ticks and slices are traced and compiled for virtual CPU devices. The collectives are those of the real programs.
Temporary memory, estimated cost and fp32 in place of bf16 belong to the CPU compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from medha_jax.attention import GpuTarget, values_of
from medha_jax.config import RuntimeConfig
from medha_jax.inspection.hlo import CONVERSIONS, COPIES, collectives, instructions, making
from medha_jax.inspection.layout_report import BucketReport, LayoutReport
from medha_jax.inspection.traced import WrittenCollective, written_collectives
from medha_jax.inspection.traffic import UNKNOWN, bytes_by_axis, traffic
from medha_jax.machine import cores
from medha_jax.mesh import build_mesh, request_cpu_devices
from medha_jax.models import is_layer_matrix
from medha_jax.runtime.executables import Compiled, ExecutableTable
from medha_jax.runtime.memory import MemoryPlan, check_memory, plan_memory
from medha_jax.runtime.programs import Programs
from medha_jax.runtime.shapes import Shape, SliceShape, rows_of_shape
from medha_jax.specs.buckets import Bucket
from medha_jax.specs.layout import Layout, LayoutError, check_layout
from medha_jax.specs.model import Architecture
from medha_jax.specs.sizes import with_gpu_rows, without_unused_slices

Choose = Callable[[Sequence[Bucket]], Sequence[Bucket]]


def corners(buckets: Sequence[Bucket]) -> tuple[Bucket, ...]:
    """The smallest and largest shapes without shared rows, then those with them."""
    kinds = [[b for b in buckets if bool(b.shared.rows) == shared] for shared in (False, True)]
    return tuple(dict.fromkeys(pick(kind, key=lambda b: b.rows) for kind in kinds if kind for pick in (min, max)))


def every(buckets: Sequence[Bucket]) -> tuple[Bucket, ...]:
    """All shapes."""
    return tuple(buckets)


def inspect_layout(
    config: RuntimeConfig,
    arch: Architecture,
    dtype: jnp.dtype,
    on_progress: Callable[[str], Any] = lambda line: None,
    usable_bytes: int | None = None,
    choose: Choose = every,
) -> LayoutReport:
    """Compile the ticks and slices of a layout for virtual CPU devices and read their programs.

    A slice is compiled with one layer, so that its collectives can be counted.

    Call it before JAX's CPU backend starts with fewer devices.

    Args:
        config: its model and compilation cache are not read.
        dtype: of weights, activations and KV.
        on_progress: called with each line of progress.
        usable_bytes: usable memory of one device, None if unknown.
        choose: selects the shapes to compile, of ticks and of slices.

    Raises:
        LayoutError: the model cannot be divided over the layout or does not fit the memory, or there are too few
            virtual devices.
    """
    programs = virtual_programs(config, arch, dtype)
    layout = programs.layout
    memory = memory_that_fits(programs, usable_bytes)
    parameters = programs.parameter_shapes.values()
    per_token = memory.pool_per_page // memory.page_size
    table = _local_bytes(programs.state_shapes.table)
    layers = programs.slice_lengths[-1]
    slices = tuple(SliceShape(bucket, 1) for bucket in choose(programs.slice_buckets))
    shapes: tuple[Shape, ...] = (*choose(programs.buckets), *slices)
    return LayoutReport(
        axes=dict(programs.mesh.shape),
        devices=layout.devices,
        family=arch.family,
        dtype=str(dtype),
        layers=arch.layers,
        parameters=sum(prod(shape.shape) for shape in parameters),
        device_parameters=sum(_local_elements(shape) for shape in parameters),
        weight_bytes=memory.weights,
        kv_bytes_per_token=per_token,
        model_kv_bytes_per_token=per_token * layout.spp * layout.tp,
        pool_bytes=memory.pool,
        pool_tokens=memory.pages * memory.page_size,
        register_bytes=memory.register,
        held_bytes=memory.held,
        table_bytes=table,
        sampler_bytes=memory.slots - table,
        total_bytes=memory.total,
        usable_bytes=memory.limit,
        context=programs.sizes.context,
        model_context=arch.context,
        longest_context=memory.longest_context,
        attention_flops=4 * layers * (arch.heads // layout.tp) * arch.head_dim,
        compiler=f"XLA for {programs.mesh.devices.flat[0].platform}, jax {jax.__version__}",
        buckets=_compile(programs, shapes, on_progress),
    )


def virtual_programs(
    config: RuntimeConfig, arch: Architecture, dtype: jnp.dtype, target: GpuTarget | None = None
) -> Programs:
    """The programs of a layout on virtual CPU devices, to compile for those or for a `target`.

    Raises:
        LayoutError: the model cannot be divided over the layout, or there are too few virtual devices.
    """
    config = without_unused_slices(config, arch.context)
    if target is not None:
        config = with_gpu_rows(config)
    layout = Layout.of(config.mesh)
    check_layout(arch, layout)
    asked = getattr(jax.config, "jax_num_cpu_devices", 0)
    request_cpu_devices(max(layout.devices, asked))
    return Programs(config, arch, dtype, build_mesh(layout, jax.devices("cpu")), target)


def memory_that_fits(programs: Programs, usable_bytes: int | None) -> MemoryPlan:
    """What stays on a device. Raises LayoutError with the longest possible context if that is more than is usable."""
    memory = plan_memory(programs, usable_bytes)
    try:
        check_memory(memory, programs, programs.layout.devices)
    except LayoutError as error:
        longest = f"the longest context that would fit is {memory.longest_context:,} tokens"
        raise LayoutError(f"{error}; {longest}") from None
    return memory


def _compile(
    programs: Programs, chosen: Sequence[Shape], on_progress: Callable[[str], Any]
) -> tuple[BucketReport, ...]:
    written: dict[Shape, tuple[WrittenCollective, ...]] = {}
    made: dict[Shape, Compiled] = {}

    def lower(shape: Shape) -> jax.stages.Lowered:
        traced = programs.trace(shape)
        written[shape] = tuple(written_collectives(traced.jaxpr.jaxpr))
        lowered: jax.stages.Lowered = traced.lower()
        return lowered

    def done(shape: Shape, compiled: Compiled) -> None:
        made[shape] = compiled
        on_progress(f"compiled {len(made)}/{len(chosen)}: {shape} in {compiled.seconds:.1f} s")

    shapes = len(programs.buckets) + len(programs.slice_buckets)
    on_progress(f"compiling {len(chosen)} of {shapes} shapes for {programs.layout}")
    threads = max(1, min(len(chosen), cores()))
    ExecutableTable.compile({shape: partial(lower, shape) for shape in chosen}, threads, done)
    return tuple(_report(programs, shape, written[shape], made[shape]) for shape in chosen)


def _report(programs: Programs, shape: Shape, written: Sequence[WrittenCollective], compiled: Compiled) -> BucketReport:
    bucket = rows_of_shape(shape)
    text = instructions(compiled.program.as_text() or "")
    found = traffic(collectives(text), written, programs.mesh.shape)
    cost = compiled.program.cost_analysis() or {}
    pool = _local_elements(values_of(programs.state_shapes.pool))
    return BucketReport(
        bucket=str(bucket),
        slice_layers=shape.length if isinstance(shape, SliceShape) else None,
        rows=bucket.rows,
        shared_rows=bucket.shared.rows,
        collectives=found,
        bytes_by_axis=bytes_by_axis(found),
        uncounted=sum(collective.count is None or collective.axis == UNKNOWN for collective in found),
        program_flops=cost.get("flops"),
        program_bytes=cost.get("bytes accessed"),
        matmul_flops=_matmul_flops(programs, shape),
        temporary_bytes=getattr(compiled.program.memory_analysis(), "temp_size_in_bytes", None),
        compile_seconds=compiled.seconds,
        pool_copies=len(making(text, COPIES, pool)),
        pool_conversions=len(making(text, CONVERSIONS, pool)),
    )


def _matmul_flops(programs: Programs, shape: Shape) -> int:
    """Two operations per weight and row: the layers' matrices for all rows, a tick's head for sampled rows."""
    arch, layout, bucket = programs.arch, programs.layout, rows_of_shape(shape)
    shapes = programs.parameter_shapes.items()
    layers = sum(_local_elements(shape) for name, shape in shapes if is_layer_matrix(name))
    if isinstance(shape, SliceShape):
        return 2 * bucket.rows * layers * (shape.length or 0) // programs.slice_lengths[-1]
    head = layout.padded_vocab(arch.vocab) // (layout.tp * layout.spp) * arch.embed
    return 2 * (bucket.rows * layers + bucket.samples * head)


def _local_elements(shape: Any) -> int:
    return prod(shape.sharding.shard_shape(shape.shape))


def _local_bytes(shape: Any) -> int:
    itemsize: int = shape.dtype.itemsize
    return _local_elements(shape) * itemsize
