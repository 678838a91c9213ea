"""Compile a layout's ticks and slices for a GPU that is not there, with XLA's whole pipeline, and read what it made.

It shows structure: what is launched, recorded, moved and kept. It shows no times, and which algorithm a real GPU would
time as the fastest for a product is not asked.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp

from medha_jax.config import RuntimeConfig, environment_without_devices
from medha_jax.inspection.command_buffers import read_command_buffers
from medha_jax.inspection.compile_task import LOG, TASK, TOOLKIT, CompileOutcome, CompileTask, shape_folder
from medha_jax.inspection.gpu_program import read_program
from medha_jax.inspection.gpu_report import GpuProgramReport, GpuReport
from medha_jax.inspection.gpu_targets import GpuDescription, GpuTargetError
from medha_jax.inspection.inspection import Choose, every, memory_that_fits, virtual_programs
from medha_jax.runtime.shapes import Shape, SliceShape, rows_of_shape
from medha_jax.specs.model import Architecture

PACKAGES = ("triton", "jax_triton", "jax_cuda12_plugin|jax_cuda13_plugin")
TEXT = "*gpu_after_optimizations.txt"
THUNKS, METADATA = "*.thunk_sequence_after_thunk_passes.txt", "*.thunk_metadata.txt"
MEMORY = "*gpu_after_optimizations-buffer-assignment.txt"
_TEMPORARY = re.compile(r"allocation \d+: size (\d+),(?: page \d+,)? preallocated-temp")
_LAST_LINES = 3  # of the log of a compiler that crashed


class GpuCompileError(RuntimeError):
    """The process that compiles ended before it had compiled everything."""


def inspect_for_gpu(
    gpu: GpuDescription,
    config: RuntimeConfig,
    arch: Architecture,
    dtype: jnp.dtype,
    on_progress: Callable[[str], Any] = lambda line: None,
    usable_bytes: int | None = None,
    choose: Choose = every,
) -> GpuReport:
    """Compile the ticks and slices of a layout for a GPU and read the programs.

    Call it before JAX's CPU backend starts with fewer devices.

    Args:
        gpu: the GPU.
        config: its model and compilation cache are not read.
        dtype: of weights, activations and KV.
        on_progress: called with each line of progress.
        usable_bytes: usable memory of one device, None if unknown.
        choose: selects the shapes to compile, of ticks and of slices; slices in every number of layers that they have.

    Raises:
        GpuTargetError: the `kernels` extra is not installed.
        GpuCompileError: XLA made no program of a shape, or crashed.
        LayoutError: the model cannot be divided over the layout or does not fit the memory.
    """
    _check_packages()
    programs = virtual_programs(config, arch, dtype, gpu.target)
    layout = programs.layout
    memory = memory_that_fits(programs, usable_bytes)
    rows = choose(programs.slice_buckets)
    shapes: tuple[Shape, ...] = (
        *choose(programs.buckets),
        *(shape for shape in programs.slices if shape.bucket in rows),
    )
    on_progress(f"compiling {len(shapes)} shapes for {layout} of {gpu.target.name}")
    reports = []
    with TemporaryDirectory(prefix="medha-jax-inspect-") as name:
        folder = Path(name)
        task = CompileTask(programs.config, arch, str(dtype), gpu, shapes)
        for number, outcome in enumerate(_outcomes(task, folder)):
            where = shape_folder(folder, number)
            reports.append(read_outcome(shapes[number], outcome, where))
            shutil.rmtree(where)
            ended = "failed" if outcome.error else "compiled"
            on_progress(f"{ended} {number + 1}/{len(shapes)}: {shapes[number]} in {outcome.seconds:.1f} s")
    return GpuReport(
        target=gpu.name,
        device=gpu.target.name,
        devices=layout.devices,
        family=arch.family,
        dtype=str(dtype),
        layers=arch.layers,
        attention=f"{programs.attention.name} ({programs.attention.why})",
        compiler=f"XLA of jax {jax.__version__}, jax-triton {version('jax-triton')}, Triton {version('triton')}",
        weight_bytes=memory.weights,
        pool_bytes=memory.pool,
        kept_bytes=memory.total,
        usable_bytes=memory.limit,
        programs=tuple(reports),
    )


def read_outcome(shape: Shape, outcome: CompileOutcome, folder: Path) -> GpuProgramReport:
    """Read what XLA wrote into a folder about one shape, all of it or what there is.

    Raises:
        GpuCompileError: there is not even the optimized program.
    """
    optimized, thunks, memory = _text(folder, TEXT), _text(folder, THUNKS), _text(folder, MEMORY)
    if optimized is None:
        raise GpuCompileError(f"{shape} does not compile for this GPU: {outcome.error}")
    program = read_program(optimized)
    log = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    buffers = None
    if thunks is not None:
        metadata = _text(folder, METADATA) or ""
        buffers = read_command_buffers(thunks, metadata, log, program.trips, program.legacy_calls)
    sizes = _TEMPORARY.findall(memory or "")
    temporary = sum(map(int, sizes)) if sizes else None
    seen = {"command buffers": buffers, "temporary memory": temporary}
    bucket = rows_of_shape(shape)
    return GpuProgramReport(
        bucket=str(bucket),
        slice_layers=shape.length if isinstance(shape, SliceShape) else None,
        rows=bucket.rows,
        compile_seconds=outcome.seconds,
        error=outcome.error,
        unseen=tuple(name for name, found in seen.items() if found is None),
        steps=program.steps,
        kernels=program.kernels,
        layer=program.layer,
        moves=program.moves,
        repeated=program.repeated,
        repeated_products=program.repeated_products,
        sent=program.sent,
        buffers=buffers,
        temporary_bytes=temporary,
        pool_aliased=program.pool_aliased,
    )


def _text(folder: Path, pattern: str) -> str | None:
    """The text of XLA's file of this name; None if XLA ended before it."""
    found = sorted(folder.glob(pattern))
    return found[0].read_text(encoding="utf-8") if found else None


def _check_packages() -> None:
    missing = [names for names in PACKAGES if not any(find_spec(name) for name in names.split("|"))]
    if missing:
        shown = " and ".join(names.split("|")[0] for names in missing)
        raise GpuTargetError(f"{shown} not installed; pip install 'medha-jax[kernels]' brings what compiles for GPUs")


def _outcomes(task: CompileTask, folder: Path) -> Iterator[CompileOutcome]:
    """Compile in a process of its own; one outcome a shape, each as soon as it is there."""
    (folder / TASK).write_bytes(pickle.dumps(task))
    _lay_out_toolkit(folder / TOOLKIT)
    command = [sys.executable, "-m", "medha_jax.inspection.compile_child", str(folder)]
    errors = folder / LOG
    done = 0
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment_without_devices()
        ) as child,
    ):
        try:
            for line in child.stdout or ():
                yield CompileOutcome(**json.loads(line))
                done += 1
        except GeneratorExit:
            child.kill()
            raise
    if done == len(task.shapes):
        return
    log = shape_folder(folder, done) / LOG
    lines = (log if log.exists() else errors).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    ended = f"the compiling process ended with status {child.returncode}"
    raise GpuCompileError(f"{task.shapes[done]}: {ended}: {' '.join(lines[-_LAST_LINES:])}")


def _lay_out_toolkit(folder: Path) -> None:
    """Lay out the assembler and the library of Triton's wheel as XLA expects them of a CUDA toolkit."""
    import triton

    wheel = Path(triton.__file__).parent / "backends" / "nvidia"
    for found, expected in (
        (wheel / "bin" / "ptxas", folder / "bin" / "ptxas"),
        (wheel / "lib" / "libdevice.10.bc", folder / "nvvm" / "libdevice" / "libdevice.10.bc"),
    ):
        if not found.exists():
            raise GpuTargetError(f"Triton {triton.__version__} brings no {found.name}; install another release of it")
        expected.parent.mkdir(parents=True)
        expected.symlink_to(found)
