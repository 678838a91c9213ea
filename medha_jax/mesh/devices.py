"""The mesh of a layout's devices."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from medha_jax.config import GROUP, STAGE, TENSOR, limit_cpu_threads, patient_cpu_collectives
from medha_jax.machine import bind_threads, bound_cores, cores
from medha_jax.specs.layout import Layout, LayoutError

AXES = (STAGE, GROUP, TENSOR)
CPU_THREADS = "tf_XLAEigen"  # XLA's name of the threads that compute on CPUs


def request_cpu_devices(count: int) -> None:
    """Request virtual CPU devices. This has no effect on other platforms, or after a backend has started."""
    patient_cpu_collectives()
    if cores() < bound_cores():  # XLA sees the affinity, but no quota
        limit_cpu_threads(cores())
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def bind_cpu_threads() -> int:
    """Bind each of XLA's threads to a core of its own; returns how many. Call it after a backend has started.

    Only where one process has one CPU device: else several threads take turns on a core.
    """
    alone = jax.process_count() == 1 and jax.local_device_count() == 1
    return bind_threads(CPU_THREADS) if alone and jax.default_backend() == "cpu" else 0


def build_mesh(layout: Layout, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange devices as `[spp, kvp, tp]`, with tensor neighbours innermost because they communicate most.

    Raises:
        LayoutError: there are fewer devices than the layout needs.
    """
    devices = list(devices if devices is not None else jax.devices())
    if len(devices) < layout.devices:
        raise LayoutError(f"{layout} needs {layout.devices} devices; there are {len(devices)}")
    grid = np.array(devices[: layout.devices]).reshape(layout.spp, layout.kvp, layout.tp)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
