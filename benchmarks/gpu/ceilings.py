"""Timing on a device, and what it can do at best: copy bandwidth and the rate of matrix products."""

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
    """Median seconds of one run, of `repeats` rounds of as many runs as take `target` seconds, after two to warm up.

    Runs of a round are dispatched one after the other and waited for once, so that the host's part is hidden where the
    device is slower. `run` returns arrays to wait for.
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
    """What this device did in this run: bytes read and written by a copy, bytes read by a sum, FLOP of products."""

    copy_bytes: float
    read_bytes: float
    matmul_flops: float

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"copy {self.copy_bytes / 1e12:.2f} TB/s (read and written), sum {self.read_bytes / 1e12:.2f} TB/s (read), "
            f"bf16 product {self.matmul_flops / 1e12:.0f} TFLOP/s"
        ]


def measure_ceilings(copy_mib: int = 4096, size: int = 8192) -> Ceilings:
    """Measure them on random data, which a product takes longer for than zeros.

    Args:
        copy_mib: size of the array that is copied; many times the cache.
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
    """Seconds of a copy and of a sum, and the bytes of the array, which is gone afterwards."""
    words = jax.jit(lambda: jax.random.bits(jax.random.key(0), (mib, 2**18), jnp.uint32))()
    copy = jax.jit(lambda x: x ^ jnp.uint32(1))
    add = jax.jit(lambda x: x.sum(dtype=jnp.uint32))
    return median_seconds(lambda: copy(words)), median_seconds(lambda: add(words)), words.nbytes
