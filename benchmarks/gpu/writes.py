"""Rotating a tick's queries and keys and writing keys and values into the pool: the kernel against XLA, in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.attention import Row, Shape, kernels_for, random_pool
from benchmarks.gpu.ceilings import Ceilings, median_seconds
from medha_jax.attention import Fp8Pool, KernelWork
from medha_jax.attention.rotate import rotate


def write_rows(ceilings: Ceilings, shape: Shape | None = None, counts: tuple[int, ...] = (64, 8192)) -> list[Row]:
    """Share of the copy bandwidth for each count of rows: every byte is read once and written once."""
    shape = shape or Shape()
    attention, cuts = kernels_for(shape), (shape.heads, shape.heads + shape.kv_heads)
    made = []
    for count in counts:
        pages = -(-count // shape.page)
        table = jnp.asarray(np.random.default_rng(0).permutation(pages)[None].astype(np.int32))
        rows = jnp.arange(count, dtype=jnp.int32)
        launch = attention.launch(count, [])
        nothing = jnp.zeros((1, 9), jnp.int32)
        work = KernelWork(nothing, nothing, jnp.zeros_like(rows), rows, launch)
        joined = (count, shape.heads + 2 * shape.kv_heads, shape.head_dim)
        heads = jax.random.normal(jax.random.key(0), joined, jnp.dtype(shape.dtype))
        angle = jax.random.uniform(jax.random.key(1), (count, shape.head_dim // 2), maxval=2 * math.pi)
        angles = jnp.cos(angle), jnp.sin(angle)

        def kernel(pool: Any, heads: Any, angles: Any, table: Any, work: KernelWork) -> Any:
            queries, keys, values = jnp.split(heads, cuts, 1)
            queries, pool = attention.store(pool, jnp.int32(0), table, queries, keys, values, angles, work)
            return pool, queries

        def scatter(pool: Any, heads: Any, angles: Any, table: Any, work: KernelWork) -> Any:
            assert not isinstance(pool, Fp8Pool)
            queries, keys, values = jnp.split(heads, cuts, 1)
            queries, keys = rotate(queries, *angles), rotate(keys, *angles)
            page, offset = table[0, work.position // shape.page], work.position % shape.page
            pool = pool.at[0, 0, page, :, offset].set(keys, unique_indices=True)
            return pool.at[0, 1, page, :, offset].set(values, unique_indices=True), queries

        nbytes = 2 * heads.nbytes + 2 * angle.nbytes
        for name, how in (("kernel", kernel), ("scatter", scatter)):
            pool = random_pool(shape, count, seed=0)
            seconds = median_seconds(_in_place(jax.jit(how, donate_argnums=0), pool, heads, angles, table, work))
            rate = nbytes / seconds
            share = rate / ceilings.copy_bytes
            made.append(Row(f"write {count} rows: {name}", seconds, rate / 1e12, "TB/s", share, None))
    return made


def _in_place(run: Callable[..., Any], pool: Any, *rest: Any) -> Callable[[], Any]:
    """Return a function that passes its last result to the next run, as ticks do."""
    held = [pool]

    def again() -> Any:
        held[0], queries = run(held[0], *rest)
        return held[0], queries

    return again
