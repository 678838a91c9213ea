"""Kernels for CPUs, from any thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import jax
import jax.numpy as jnp

from medha_jax.attention import choose


def test_many_threads_may_ask_for_a_kernel_at_a_time() -> None:
    """JAX would refuse a second one of the same name."""

    def asked(_: int) -> str:
        here.wait()
        return choose("llvm", jax.devices("cpu")[0], 3, 1, 16, 16, jnp.dtype("float32"), fp8=False).why

    here = Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(asked, range(8)))) == 1
