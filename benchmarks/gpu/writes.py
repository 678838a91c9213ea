"""Writing a tick's keys and values into the pool: the kernel against XLA's scatter, both in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.attention import Row, Shape, kernels_for, random_pool
from benchmarks.gpu.ceilings import Ceilings, median_seconds
from medha_jax.attention import Fp8Pool, KernelWork


def write_rows(ceilings: Ceilings, shape: Shape | None = None, counts: tuple[int, ...] = (64, 8192)) -> list[Row]:
    """Share of the copy bandwidth for each count of rows: every byte is read once and written once."""
    shape = shape or Shape()
    attention = kernels_for(shape)
    made = []
    for count in counts:
        pages = -(-count // shape.page)
        table = jnp.asarray(np.random.default_rng(0).permutation(pages)[None].astype(np.int32))
        rows = jnp.arange(count, dtype=jnp.int32)
        launch = attention.launch(count, [])
        nothing = jnp.zeros((1, 9), jnp.int32)
        work = KernelWork(nothing, nothing, jnp.zeros_like(rows), rows, launch)
        sizes = (count, shape.kv_heads, shape.head_dim)
        keys, values = (jax.random.normal(jax.random.key(n), sizes, jnp.dtype(shape.dtype)) for n in (0, 1))

        def kernel(pool: Any, keys: Any, values: Any, table: Any, work: KernelWork) -> Any:
            return attention.store(pool, jnp.int32(0), table, keys, values, work)

        def scatter(pool: Any, keys: Any, values: Any, table: Any, work: KernelWork) -> Any:
            assert not isinstance(pool, Fp8Pool)
            page, offset = table[0, work.position // shape.page], work.position % shape.page
            pool = pool.at[0, 0, page, :, offset].set(keys, unique_indices=True)
            return pool.at[0, 1, page, :, offset].set(values, unique_indices=True)

        nbytes = 2 * (keys.nbytes + values.nbytes)
        for name, how in (("kernel", kernel), ("scatter", scatter)):
            pool = random_pool(shape, count, seed=0)
            seconds = median_seconds(_in_place(jax.jit(how, donate_argnums=0), pool, keys, values, table, work))
            rate = nbytes / seconds
            share = rate / ceilings.copy_bytes
            made.append(Row(f"write {count} rows: {name}", seconds, rate / 1e12, "TB/s", share, None))
    return made


def _in_place(run: Callable[..., Any], pool: Any, *rest: Any) -> Callable[[], Any]:
    """Return a function that passes its last result to the next run, as ticks do."""
    held = [pool]

    def again() -> Any:
        held[0] = run(held[0], *rest)
        return held[0]

    return again
