"""What a GPU check or measurement runs on, and its exit code where there is no GPU."""

from __future__ import annotations

import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from medha_jax.attention.gpu.launch import GpuTarget

NO_GPU = 3  # exit code
PACKAGES = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-triton", "triton", "torch", "numpy")


def installed(package: str) -> str | None:
    """A package's version, None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def facts(device: jax.Device, target: GpuTarget, seed: int) -> dict[str, Any]:
    """What this runs on."""
    versions = {name: found for name in PACKAGES if (found := installed(name))}
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
    """The NVIDIA driver's version, as nvidia-smi says it; `unknown` where that is missing."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip()
