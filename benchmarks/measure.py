"""Timing, and the ceilings of the machine that the other benchmarks are compared with."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def best_seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    """Shortest wall-clock seconds of `repeats` runs after one to warm up; `run` returns arrays to wait for."""
    jax.block_until_ready(run())
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(run())
        best = min(best, time.perf_counter() - started)
    return best


def matmul_rate(dtype: Any = jnp.float32, size: int = 2048) -> float:
    """FLOP/s of a dense square product (2 n^3 operations)."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / best_seconds(lambda: product(a, a))


def copy_rate(megabytes: int = 256) -> float:
    """Bytes read a second by a copy: the array's bytes over the time to write it elsewhere."""
    x = jnp.ones(megabytes * 2**18, jnp.float32)
    target = jnp.zeros_like(x)
    copy = jax.jit(lambda target, x: x + 1, donate_argnums=0)
    jax.block_until_ready(target)
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        target = jax.block_until_ready(copy(target, x))
        best = min(best, time.perf_counter() - started)
    return x.nbytes / best


def machine() -> str:
    """One line that says what this ran on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            model = next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}, jax {jax.__version__}"
