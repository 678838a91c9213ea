"""Memory, traffic and work of a layout, found without weights, requests or its devices."""

from medha_jax.inspection.gpu_inspection import inspect_for_gpu
from medha_jax.inspection.gpu_report import GpuProgramReport, GpuReport
from medha_jax.inspection.gpu_targets import GpuDescription, GpuTargetError, gpu_names, load_gpu
from medha_jax.inspection.inspection import corners, every, inspect_layout
from medha_jax.inspection.layout_report import BucketReport, LayoutReport
from medha_jax.inspection.traffic import Traffic

__all__ = [
    "BucketReport",
    "GpuDescription",
    "GpuProgramReport",
    "GpuReport",
    "GpuTargetError",
    "LayoutReport",
    "Traffic",
    "corners",
    "every",
    "gpu_names",
    "inspect_for_gpu",
    "inspect_layout",
    "load_gpu",
]
