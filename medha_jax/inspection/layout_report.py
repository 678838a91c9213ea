"""What `inspection` finds out about a layout, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from medha_jax.inspection.traffic import Traffic


@dataclass(frozen=True)
class BucketReport:
    """One tick of one shape, on one device.

    Args:
        bucket: decodes+prompt tokens of a group, then `/` those that groups share.
        rows: tokens of the tick, padding included; `shared_rows` of them go to every group.
        collectives: what devices say to each other.
        bytes_by_axis: result bytes a tick of each mesh axis, in the element types the tick is written in. A
            collective that runs unknown times is not in it.
        uncounted: collectives whose number of runs is not known, see `Traffic.count`, or that follow no axes.
        program_flops: the compiler's estimate, which counts the body of every loop once; None if it gives none.
        program_bytes: bytes accessed, estimated the same way.
        matmul_flops: of projections, MLP and head, counted from the model's sizes for all rows and layers; attention
            over the context is not in it, see `LayoutReport.attention_flops`.
        temporary_bytes: memory the program takes while it runs on the compiling backend.
        compile_seconds: tracing, lowering and compiling.
        pool_copies: instructions that copy or transpose an array as large as a device's KV pool.
        pool_conversions: instructions that convert one, as compilers do for CPUs without bf16.
    """

    bucket: str
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
        parameters: on all devices together, with what is filled up and repeated; `device_parameters` on one.
        kv_bytes_per_token: of one token on one device that holds it; `model_kv_bytes_per_token` on all that do.
        pool_tokens: tokens that the pool of a group holds.
        context: most tokens of one request; `model_context` is the model's own limit.
        longest_context: tokens of one request that would fit in all groups if the pool took all that is left,
            None if the memory is not known.
        attention_flops: of one row against one token of its context, all layers and heads of the device.
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
