"""Timing, and the machine's ceilings for comparison."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from medha_jax.machine import cores, cpu_model


def best_seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    """Shortest wall-clock seconds of `repeats` runs after one warm-up run; `run` returns arrays to wait for."""
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
    """Bytes per second that a copy reads: the array's bytes / the time of the copy."""
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
    """The machine and JAX's version in one line."""
    return f"{cpu_model()}, {cores()} cores, {jax.devices()[0].device_kind}, jax {jax.__version__}"
