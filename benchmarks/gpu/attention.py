"""Attention of one layer by the kernels, on random data: `python -m benchmarks.gpu.attention`.

Work: `4 * heads * head_dim` FLOP per query and visible token. Bytes: keys and values of every decode's context once,
`4 * kv_heads * head_dim` bytes per token in bfloat16 and `2 * kv_heads * (head_dim + 1)` in eight bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.ceilings import Ceilings, measure_ceilings, median_seconds
from medha_jax.attention import (
    Fp8Pool,
    GpuTarget,
    KernelAttention,
    KernelWork,
    Launch,
    Pool,
    choose,
    list_tiles,
    plan_items,
)
from medha_jax.attention.pool import to_fp8

Run = Callable[[], Any]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model's attention on one device; the default is Llama-3 8B."""

    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    page: int = 128
    dtype: str = "bfloat16"
    fp8: bool = False


@dataclass(frozen=True)
class Load:
    """A tick: decodes at their contexts, and `queries` prompt tokens of one request at the end of `context`."""

    decodes: tuple[int, ...] = ()
    queries: int = 0
    context: int = 0

    def flops(self, shape: Shape) -> int:
        """FLOP of the prompt tokens and the decodes."""
        seen = sum(self.decodes) + self.queries * self.context - self.queries * (self.queries - 1) // 2
        return 4 * shape.heads * shape.head_dim * seen

    def nbytes(self, shape: Shape) -> int:
        """Bytes of the keys and values of all contexts, each read once."""
        each = shape.head_dim * (1 if shape.fp8 else jnp.dtype(shape.dtype).itemsize) + shape.fp8
        return 2 * shape.kv_heads * each * (sum(self.decodes) + self.context)


@dataclass(frozen=True)
class Prepared:
    """All arguments of a launch, on the device."""

    shape: Shape
    load: Load
    attention: KernelAttention
    queries: jax.Array
    pool: Pool
    table: jax.Array
    work: KernelWork

    def runner(self) -> Run:
        """One layer's attention."""
        run = jax.jit(self.attention.attend)
        layer = jnp.int32(0)
        return lambda: run(self.queries, self.pool, layer, self.table, self.work)

    @property
    def seconds(self) -> float:
        """Median time of one layer's attention."""
        return median_seconds(self.runner())


def kernels_for(shape: Shape, target: GpuTarget | None = None, device: jax.Device | None = None) -> KernelAttention:
    """The kernels for a shape on the first device.

    Raises:
        LaunchError: they cannot run there.
    """
    chosen = choose(
        "triton",
        device or jax.devices()[0],
        heads=shape.kv_heads,
        group=shape.heads // shape.kv_heads,
        head_dim=shape.head_dim,
        page=shape.page,
        dtype=jnp.dtype(shape.dtype),
        fp8=shape.fp8,
        target=target,
    )
    assert isinstance(chosen, KernelAttention)
    return chosen


def random_pool(shape: Shape, tokens: int, seed: int, layers: int = 1) -> Pool:
    """A pool of at least `tokens` per layer: one random block of 512 pages repeated, far more than caches hold."""
    pages = -(-tokens // shape.page) + 1
    block = min(pages, 512)

    @jax.jit
    def make() -> Pool:
        drawn = (1, 2, block, shape.kv_heads, shape.page, shape.head_dim)
        values = jax.random.normal(jax.random.key(seed), drawn, jnp.dtype(shape.dtype))
        repeats = -(-pages // block)
        if shape.fp8:
            parts, exponents = to_fp8(values)
            return Fp8Pool(
                jnp.tile(parts, (layers, 1, repeats, 1, 1, 1)), jnp.tile(exponents, (layers, 1, repeats, 1, 1))
            )
        return jnp.tile(values, (layers, 1, repeats, 1, 1, 1))

    return make()


def prepare(shape: Shape, load: Load, attention: KernelAttention, seed: int = 0, pool: Pool | None = None) -> Prepared:
    """Random queries, pages in random order, and the work list; `pool` reuses a large enough pool."""
    rng = np.random.default_rng(seed)
    contexts = [*load.decodes, *([load.context] if load.queries else [])]
    share = [-(-tokens // shape.page) for tokens in contexts]
    made = pool if pool is not None else random_pool(shape, sum(share) * shape.page, seed)
    values = made.values if isinstance(made, Fp8Pool) else made
    pages = rng.permutation(values.shape[2])[: sum(share)]
    # a row of the table is a whole number of the largest blocks
    table = np.zeros((len(contexts), -(-max(share) // 256) * 256), np.int32)
    for slot, (first, count) in enumerate(zip(np.cumsum([0, *share[:-1]]), share, strict=True)):
        table[slot, :count] = pages[first : first + count]
    decodes = max(1, len(load.decodes))  # every shape of a tick has a decode row
    lengths = np.zeros(decodes, np.int32)
    lengths[: len(load.decodes)] = load.decodes
    rows = decodes + load.queries
    launch = attention.launch(decodes, [(load.queries, 1)] if load.queries else [])
    prompt = (decodes, load.queries, len(contexts) - 1, load.context - load.queries, load.context)
    chunks = np.array([prompt] if load.queries else [], np.int64)
    items, merges = plan_items(launch, list_tiles(launch, np.arange(decodes), lengths, chunks))
    nothing = jnp.zeros(rows, jnp.int32)
    work = KernelWork(jnp.asarray(items), jnp.asarray(merges), nothing, nothing - 1, launch)
    queries = jax.random.normal(jax.random.key(seed), (rows, shape.heads, shape.head_dim), jnp.dtype(shape.dtype))
    return Prepared(shape, load, attention, queries, made, jnp.asarray(table), work)


def apart(attention: KernelAttention) -> KernelAttention:
    """The same kernels with one launch for each kind of tile."""
    rows = tuple(replace(row, together=False) for row in attention.table.rows)
    return replace(attention, table=replace(attention.table, rows=rows))


def tiles_of(launch: Launch) -> str:
    """The tile sizes of a launch as text."""
    tiles = [tile for tile in (launch.prefill, launch.decode) if tile is not None]
    return ", ".join(f"{t.rows}x{t.keys} {t.warps} warps {t.stages} stages" for t in tiles)


@dataclass(frozen=True)
class Row:
    """One measurement; `share` is its part of the ceiling, `floor` the aim for it."""

    name: str
    seconds: float
    rate: float
    unit: str
    share: float
    floor: float | None
    note: str = ""

    def line(self) -> str:
        """The measurement as text."""
        aim = "" if self.floor is None else f" (aim {self.floor:.0%})"
        rate = f"{self.seconds * 1e3:9.3f} ms {self.rate:8.2f} {self.unit}"
        return f"{self.name:44s} {rate} {self.share:6.1%}{aim}  {self.note}"


def prefill_row(shape: Shape, load: Load, ceilings: Ceilings, attention: KernelAttention, pool: Pool) -> Row:
    """Prompt tokens against the rate of matrix products."""
    made = prepare(shape, load, attention, pool=pool)
    seconds = made.seconds
    rate = load.flops(shape) / seconds
    name = f"prefill {load.queries} at {load.context:,}{' fp8' if shape.fp8 else ''}"
    return Row(name, seconds, rate / 1e12, "TFLOP/s", rate / ceilings.matmul_flops, 0.65, tiles_of(made.work.launch))


def decode_row(shape: Shape, load: Load, ceilings: Ceilings, attention: KernelAttention, pool: Pool) -> Row:
    """Decodes against the copy bandwidth."""
    made = prepare(shape, load, attention, pool=pool)
    seconds = made.seconds
    rate = load.nbytes(shape) / seconds
    name = f"decode {len(load.decodes)} at {max(load.decodes):,}{' fp8' if shape.fp8 else ''}"
    return Row(name, seconds, rate / 1e12, "TB/s", rate / ceilings.copy_bytes, 0.88, tiles_of(made.work.launch))


def mixed_rows(shape: Shape, load: Load, attention: KernelAttention, pool: Pool) -> list[Row]:
    """Both kinds in one launch and in two; `share` is relative to each kind alone, one after the other."""
    alone = [replace(load, decodes=()), replace(load, queries=0, context=0)]
    parts = [prepare(shape, part, attention, pool=pool).seconds for part in alone]
    rows = []
    for name, how in (("one launch", attention), ("two launches", apart(attention))):
        seconds = prepare(shape, load, how, pool=pool).seconds
        name = f"mixed {load.queries} at {load.context:,} + {len(load.decodes)} at {max(load.decodes):,}: {name}"
        note = f"alone {parts[0] * 1e3:.3f} + {parts[1] * 1e3:.3f} ms"
        rows.append(Row(name, seconds, seconds * 1e3, "ms", seconds / sum(parts), None, note))
    return rows


MILLION = 2**20
LOADS = {
    "prefill": [Load(queries=n, context=c) for c in (2**17, MILLION) for n in (64, 512, 2048, 4096)],
    "decode": [Load(decodes=(MILLION,)), Load(decodes=(16384,) * 64), Load(decodes=(MILLION // 2,) + (4096,) * 63)],
    "mixed": [Load(decodes=(16384,) * 64, queries=512, context=2**17)],
}


def attention_rows(ceilings: Ceilings, report: Callable[[Row], None], small: bool = False) -> list[Row]:
    """Measure all rows and report each one; `small` shrinks contexts for a trial."""
    rows: list[Row] = []

    def tell(made: list[Row]) -> None:
        for row in made:
            rows.append(row)
            report(row)

    def shrunk(load: Load) -> Load:
        if not small:
            return load
        cut = 2**10
        return Load(
            tuple(max(1, context // cut) for context in load.decodes), min(load.queries, 32), load.context // cut
        )

    for fp8 in (False, True):
        shape = Shape(fp8=fp8)
        attention = kernels_for(shape)
        pool = random_pool(shape, MILLION // (2**10 if small else 1) + 64 * shape.page * 2, seed=0)
        one = partial(prefill_row, shape, ceilings=ceilings, attention=attention, pool=pool)
        two = partial(decode_row, shape, ceilings=ceilings, attention=attention, pool=pool)
        for load in LOADS["prefill"] if not fp8 else LOADS["prefill"][-2:]:
            tell([one(shrunk(load))])
        for load in LOADS["decode"]:
            tell([two(shrunk(load))])
        if not fp8:
            for load in LOADS["mixed"]:
                big = random_pool(shape, sum(shrunk(load).decodes) + shrunk(load).context + 64 * shape.page, seed=0)
                tell(mixed_rows(shape, shrunk(load), attention, big))
        del pool
    return rows


def main() -> None:
    """Print the ceilings, then one line per row."""
    ceilings = measure_ceilings()
    for line in ceilings.lines():
        print(line)
    attention_rows(ceilings, lambda row: print(row.line(), flush=True))


if __name__ == "__main__":
    main()
