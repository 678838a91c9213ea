"""Paged attention against the dense matmul rate of the same run: `python -m benchmarks.attention`.

Work: 4 * queries * visible tokens * heads * head_dim FLOP. With 8 heads, 2 KV heads and head_dim 64, 512 queries at the
end of 16K tokens are 17 GFLOP against 8.4 MB of fp32 KV. So the matmul rate is the ceiling.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import best_seconds, machine, matmul_rate
from medha_jax.attention import AttentionWork, Tiles, attend

HEADS, KV_HEADS, HEAD_DIM, PAGE = 8, 2, 64, 64


def prefill_rate(queries: int, context: int, dtype: Any) -> float:
    """FLOP/s of the last `queries` tokens of a context of `context` tokens, in tiles of at most 512."""
    pages = context // PAGE
    key = jax.random.key(0)
    pool = jax.random.normal(key, (1, 2, pages + 7, KV_HEADS, PAGE, HEAD_DIM), dtype)
    rows = jax.random.normal(key, (1 + queries, HEADS, HEAD_DIM), dtype)
    table = jnp.asarray(np.random.default_rng(0).permutation(pages)[None].astype(np.int32))
    size = min(queries, 512)
    starts = np.arange(0, queries, size, dtype=np.int32)
    tiles = Tiles(
        slot=jnp.zeros(len(starts), jnp.int32),
        row=jnp.asarray(starts + 1),
        start=jnp.asarray(starts + context - queries),
        count=jnp.full(len(starts), size, jnp.int32),
        limit=jnp.full(len(starts), context, jnp.int32),
        stored=jnp.zeros(len(starts), jnp.int32),
        used=jnp.int32(len(starts)),
        size=size,
    )
    nothing = jnp.zeros(1, jnp.int32)
    work = AttentionWork(nothing, nothing, nothing, jnp.int32(0), (tiles,))
    run = jax.jit(attend)
    seconds = best_seconds(lambda: run(rows, pool, jnp.int32(0), table, work))
    visible = context - (queries - 1) / 2
    return 4 * queries * visible * HEADS * HEAD_DIM / seconds


def main() -> None:
    """Print one line per case: the rate, and its ratio to the fp32 matmul rate measured just before."""
    print(machine())
    rates = {}
    for queries, context in ((512, 16384), (64, 16384), (2048, 16384)):
        for dtype in (jnp.float32, jnp.bfloat16):
            dense = matmul_rate()
            rate = rates[queries, dtype] = prefill_rate(queries, context, dtype)
            print(
                f"{queries:5d} queries, {context} context, {jnp.dtype(dtype).name:8s}: {rate / 1e9:6.1f} GFLOP/s, "
                f"{rate / dense:.2f} of dense fp32 ({dense / 1e9:.1f})"
            )
    print(f"bf16 over fp32 at 512 queries: {rates[512, jnp.bfloat16] / rates[512, jnp.float32]:.2f}")


if __name__ == "__main__":
    main()
