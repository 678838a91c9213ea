"""Timing on a device, and its ceilings: copy bandwidth and the rate of matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Run = Callable[[], Any]


def median_seconds(run: Run, target: float = 0.15, repeats: int = 5) -> float:
    """Median seconds of one run over `repeats` rounds of about `target` seconds, after two warm-up runs.

    All runs of a round are dispatched before the wait, so a slower device hides the host's time. `run` returns arrays
    to wait for.
    """
    jax.block_until_ready(run())
    jax.block_until_ready(run())
    started = time.perf_counter()
    jax.block_until_ready(run())
    once = time.perf_counter() - started
    count = max(3, min(200, int(target / max(once, 1e-6))))
    rounds = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(count):
            last = run()
        jax.block_until_ready(last)
        rounds.append((time.perf_counter() - started) / count)
    return statistics.median(rounds)


@dataclass(frozen=True)
class Ceilings:
    """Rates per second of this device: bytes of a copy (read and written), bytes read by a sum, FLOP of products."""

    copy_bytes: float
    read_bytes: float
    matmul_flops: float

    def lines(self) -> list[str]:
        """The ceilings as text."""
        return [
            f"copy {self.copy_bytes / 1e12:.2f} TB/s (read and written), sum {self.read_bytes / 1e12:.2f} TB/s (read), "
            f"bf16 product {self.matmul_flops / 1e12:.0f} TFLOP/s"
        ]


def measure_ceilings(copy_mib: int = 4096, size: int = 8192) -> Ceilings:
    """Measure the ceilings on random data, because products of zeros are faster.

    Args:
        copy_mib: size of the copied array; many times the cache.
        size: rows and columns of the bf16 matrices.
    """
    copy_seconds, read_seconds, nbytes = _copy_and_read(copy_mib)
    a, b = (
        jax.jit(lambda key: jax.random.normal(key, (size, size), jnp.bfloat16))(jax.random.key(seed)) for seed in (1, 2)
    )
    product = jax.jit(jnp.matmul)
    seconds = median_seconds(lambda: product(a, b))
    return Ceilings(2 * nbytes / copy_seconds, nbytes / read_seconds, 2 * size**3 / seconds)


def _copy_and_read(mib: int) -> tuple[float, float, int]:
    """Seconds of a copy and of a sum, and the array's bytes. The array is freed on return."""
    words = jax.jit(lambda: jax.random.bits(jax.random.key(0), (mib, 2**18), jnp.uint32))()
    copy = jax.jit(lambda x: x ^ jnp.uint32(1))
    add = jax.jit(lambda x: x.sum(dtype=jnp.uint32))
    return median_seconds(lambda: copy(words)), median_seconds(lambda: add(words)), words.nbytes
