"""A process of its own that compiles programs for a GPU that is not there, so that XLA's log and crashes stay apart.

`python -m medha_jax.inspection.compile_child FOLDER` reads a task from FOLDER. For each shape it writes XLA's dump and
log there, and prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from medha_jax.inspection.compile_task import LOG, TASK, TOOLKIT, CompileOutcome, CompileTask, shape_folder
from medha_jax.mesh import build_mesh
from medha_jax.runtime.programs import Programs
from medha_jax.runtime.shapes import Shape
from medha_jax.specs.layout import Layout


def run_task(folder: Path) -> None:
    """Compile every shape of the task in a folder."""
    task: CompileTask = pickle.loads((folder / TASK).read_bytes())
    layout = Layout.of(task.config.mesh)
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=task.gpu.text, topology=f"1x1x{layout.devices}"
    )
    mesh = build_mesh(layout, topology.devices)
    programs = Programs(task.config, task.arch, jnp.dtype(task.dtype), mesh, task.gpu.target)
    for number, shape in enumerate(task.shapes):
        into = shape_folder(folder, number)
        into.mkdir()
        with (into / LOG).open("wb") as log:
            os.dup2(log.fileno(), sys.stderr.fileno())
        print(json.dumps(asdict(_compile(programs, shape, folder, into))), flush=True)


def _compile(programs: Programs, shape: Shape, folder: Path, into: Path) -> CompileOutcome:
    # Nothing can be timed here: without the level, XLA would want a device to choose between algorithms.
    options: dict[str, Any] = programs.compiler_options | {
        "xla_gpu_autotune_level": 0,
        "xla_gpu_cuda_data_dir": str(folder / TOOLKIT),
        "xla_dump_to": str(into),
    }
    begin = time.perf_counter()
    lowered = programs.lower(shape)
    try:
        lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        return CompileOutcome(time.perf_counter() - begin, str(error).splitlines()[0])
    return CompileOutcome(time.perf_counter() - begin)


if __name__ == "__main__":
    run_task(Path(sys.argv[1]))
