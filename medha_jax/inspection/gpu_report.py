"""The findings about a layout's programs for one kind of GPU, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from medha_jax.inspection.command_buffers import CommandBuffers
from medha_jax.inspection.gpu_program import DataMove, KernelCount, SentArray


@dataclass(frozen=True)
class GpuProgramReport:
    """One tick or slice, compiled for a GPU.

    Args:
        bucket: decodes+prompt tokens of a group, then `/` and those that groups share.
        slice_layers: layers of a slice; None for a tick.
        rows: its tokens, including padding.
        compile_seconds: time to trace, lower and compile.
        error: why XLA did not finish the program; None if it did.
        unseen: what could not be looked at, because the compiler ended before it.
        steps: layers that it computes.
        kernels: operations by kind, in one step of that loop and outside of it.
        layer: what the layer that launches most launches, by name and kind.
        moves: operations that only move data, in the order of the program.
        repeated: instructions that are computed again to save memory; `repeated_products` of them are products.
        sent: collectives.
        buffers: command buffers; None if unseen.
        temporary_bytes: memory of the running program beside arguments and results; None if unseen.
        pool_aliased: the new pool is in the memory of the old one.
    """

    bucket: str
    slice_layers: int | None
    rows: int
    compile_seconds: float
    error: str | None
    unseen: tuple[str, ...]
    steps: int
    kernels: tuple[KernelCount, ...]
    layer: tuple[str, ...]
    moves: tuple[DataMove, ...]
    repeated: tuple[str, ...]
    repeated_products: int
    sent: tuple[SentArray, ...]
    buffers: CommandBuffers | None
    temporary_bytes: int | None
    pool_aliased: bool


@dataclass(frozen=True)
class GpuReport:
    """A layout's programs for one kind of GPU.

    Args:
        target: name of the GPU's description; `device` is the name that the GPU gives itself.
        attention: the implementation, and why.
        compiler: of XLA, JAX and Triton.
        weight_bytes: on one device, as are the others; `kept_bytes` is all that stays there between programs.
        usable_bytes: of the device's memory.
    """

    target: str
    device: str
    devices: int
    family: str
    dtype: str
    layers: int
    attention: str
    compiler: str
    weight_bytes: int
    pool_bytes: int
    kept_bytes: int
    usable_bytes: int | None
    programs: tuple[GpuProgramReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)
