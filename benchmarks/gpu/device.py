"""Facts about the device of a GPU check, and the exit code without a GPU."""

from __future__ import annotations

import platform
import subprocess
import time
from typing import Any

import jax

from medha_jax.attention.gpu.launch import GpuTarget
from medha_jax.results.stamp import installed_version

NO_GPU = 3  # exit code
PACKAGES = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-triton", "triton", "torch", "numpy")


def facts(device: jax.Device, target: GpuTarget, seed: int) -> dict[str, Any]:
    """Date, device, driver and versions of a run."""
    versions = {name: found for name in PACKAGES if (found := installed_version(name))}
    stats = device.memory_stats() or {}
    return dict(
        date=time.strftime("%Y-%m-%d"),
        gpu=target.name,
        capability=target.capability,
        multiprocessors=target.processors,
        memory_gib=round(stats.get("bytes_limit", 0) / 2**30, 1),
        driver=driver(),
        python=platform.python_version(),
        seed=seed,
        **versions,
    )


def driver() -> str:
    """The NVIDIA driver's version from nvidia-smi; `unknown` without it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip()
