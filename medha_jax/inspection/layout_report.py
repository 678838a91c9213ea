"""The findings of `inspection` about a layout, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from medha_jax.inspection.traffic import Traffic


@dataclass(frozen=True)
class BucketReport:
    """One tick or slice of one shape, on one device.

    Args:
        bucket: decodes+prompt tokens of a group, then `/` and those that groups share.
        slice_layers: layers of a slice; None for a tick.
        rows: its tokens, including padding; `shared_rows` of them go to every group.
        bytes_by_axis: result bytes of one run on each mesh axis, in the program's own element types. Excludes
            collectives with an unknown number of runs.
        uncounted: collectives with an unknown number of runs (`Traffic.count`) or unknown axes.
        program_flops: the compiler's estimate, which counts every loop body once; None if there is none.
        program_bytes: bytes accessed, estimated the same way.
        matmul_flops: projections, MLP and a tick's head, counted from the model's sizes for all rows and layers.
            Attention over the context is separate (`LayoutReport.attention_flops`).
        temporary_bytes: memory of the running program on the compiling backend.
        compile_seconds: time to trace, lower and compile.
        pool_copies: instructions that copy or transpose an array as large as a device's KV pool.
        pool_conversions: instructions that convert such an array, as compilers do for CPUs without bf16.
    """

    bucket: str
    slice_layers: int | None
    rows: int
    shared_rows: int
    collectives: tuple[Traffic, ...]
    bytes_by_axis: Mapping[str, int]
    uncounted: int
    program_flops: float | None
    program_bytes: float | None
    matmul_flops: int
    temporary_bytes: int | None
    compile_seconds: float
    pool_copies: int
    pool_conversions: int


@dataclass(frozen=True)
class LayoutReport:
    """A layout of one model; sizes are bytes on one device.

    Args:
        axes: devices on each mesh axis.
        parameters: number over all devices, including padding and repeats; `device_parameters` is that of one.
        kv_bytes_per_token: on one device that holds the token; `model_kv_bytes_per_token` is the sum over all of them.
        pool_tokens: capacity of one group's pool, in tokens.
        context: most tokens of one request; `model_context` is the model's own limit.
        longest_context: tokens of one request that would fit in all groups if the pool took all remaining memory;
            None if the memory is unknown.
        attention_flops: one row against one token of its context, for all layers and heads of the device.
    """

    axes: Mapping[str, int]
    devices: int
    family: str
    dtype: str
    layers: int
    parameters: int
    device_parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    model_kv_bytes_per_token: int
    pool_bytes: int
    pool_tokens: int
    register_bytes: int
    held_bytes: int
    table_bytes: int
    sampler_bytes: int
    total_bytes: int
    usable_bytes: int | None
    context: int
    model_context: int
    longest_context: int | None
    attention_flops: int
    compiler: str
    buckets: tuple[BucketReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)
