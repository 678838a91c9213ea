"""What a process that compiles for a GPU is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medha_jax.config import RuntimeConfig
from medha_jax.inspection.gpu_targets import GpuDescription
from medha_jax.runtime.shapes import Shape
from medha_jax.specs.model import Architecture

TASK, LOG, TOOLKIT = "task", "log", "cuda"


@dataclass(frozen=True)
class CompileTask:
    """What to compile, for which GPU."""

    config: RuntimeConfig
    arch: Architecture
    dtype: str
    gpu: GpuDescription
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class CompileOutcome:
    """How compiling one shape ended: the time, and XLA's message if it failed."""

    seconds: float
    error: str | None = None


def shape_folder(folder: Path, number: int) -> Path:
    """Where the dump and the log of a task's shape are."""
    return folder / str(number)
