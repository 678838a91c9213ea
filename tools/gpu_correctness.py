"""The attention kernels on a GPU against softmax in float64 on the host, on fresh random inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.gpu.attention import Load, Shape, apart, kernels_for, prepare, random_pool
from medha_jax.attention import Fp8Pool, GpuTarget, KernelAttention, KernelWork, Pool
from medha_jax.attention.rotate import Angles, rotate
from tools.attention_cases import LAYER, Case, Mix, border_mixes, expected, random_arrays, random_mix, wide

LSE_ERROR = 1e-3  # absolute; the sum is in fp32
CASES_AT_ONCE = 4
# relative errors |out - reference| / |reference| from rounding the operands, with some room
LARGEST_ERROR = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5}


@dataclass(frozen=True)
class Outcome:
    """Result of one check; `detail` has its figures."""

    name: str
    passed: bool
    detail: str

    def line(self) -> str:
        """The outcome as text."""
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name}: {self.detail}"


def case(heads: int, kv_heads: int, head_dim: int, page: int, **more: Any) -> Case:
    """A ragged tick of 4 decodes and 300 prompt tokens, with contexts up to 4,096 tokens."""
    sizes: dict[str, Any] = dict(
        keys=128, decode_keys=64, dtype="bfloat16", decodes=4, prompt=300, pages_per_slot=4096 // page
    )
    return Case(heads, kv_heads, head_dim, page, **{**sizes, **more})


CASES = [
    *(case(8, 2, head_dim, 128) for head_dim in (64, 96, 128, 256)),
    *(case(8, 2, head_dim, 64, dtype="float16") for head_dim in (64, 128)),
    *(case(8, 2, 128, page) for page in (16, 64, 256)),
    *(case(heads, kv_heads, 128, 128) for heads, kv_heads in ((4, 4), (7, 1), (16, 2), (32, 8))),
    case(8, 2, 128, 128, prompt=0, chunks=0),
    case(8, 2, 128, 128, prompt=16, chunks=1),
    case(8, 2, 64, 128, dtype="float32"),
]


def attention_of(case: Case, target: GpuTarget | None = None) -> KernelAttention:
    """The kernels with the shipped table's sizes for a case."""
    shape = Shape(case.heads, case.kv_heads, case.head_dim, case.page, case.dtype, case.fp8)
    chosen = kernels_for(shape, target)
    return chosen if case.together else apart(chosen)


Program = Callable[..., tuple[Pool, Array, Array]]


def program(attention: KernelAttention) -> Program:
    """Rotate, store and attend in one jitted function; the pool is donated."""

    def run(
        queries: Array, keys: Array, values: Array, angles: Angles, pool: Pool, table: Array, work: KernelWork
    ) -> tuple[Pool, Array, Array]:
        queries, pool = attention.store(pool, jnp.int32(LAYER), table, queries, keys, values, angles, work)
        return pool, *attention.attend(queries, pool, jnp.int32(LAYER), table, work)

    return jax.jit(run, donate_argnums=4)


def poison() -> None:
    """Fill free memory with NaN, so that elements that the next program does not write are noticed."""
    jnp.full(2**26, jnp.nan, jnp.float32).block_until_ready()


def check_case(mix: Mix, attention: KernelAttention, run: Program, rng: np.random.Generator) -> Outcome:
    """Check the stored values, the output and the log-sum-exp of one mix on random data."""
    case = mix.case
    queries, keys, values, angles, pool, table = random_arrays(case, rng)
    before = wide(pool, case.dtype)
    decodes, prompts = case.decodes, [(case.prompt, case.chunks)] if case.prompt else []
    work = jax.tree.map(jnp.asarray, mix.kernel_work(attention.launch(decodes, prompts)))
    poison()
    after, out, lse = run(queries, keys, values, angles, pool, jnp.asarray(table), work)
    queries, keys = rotate(queries, *angles), rotate(keys, *angles)
    stored, got, got_lse = wide(after, case.dtype), np.asarray(out, np.float64), np.asarray(lse)
    wanted, wanted_lse, real = expected(mix, np.asarray(queries), stored, table)
    error, seen = relative(got, wanted), np.isfinite(wanted_lse)
    off = float(np.abs(got_lse[seen] - wanted_lse[seen]).max(initial=0))
    wrong = [
        ("output", error <= LARGEST_ERROR[case.dtype]),
        ("log-sum-exp", off <= LSE_ERROR and np.array_equal(np.isneginf(got_lse), ~seen)),
        ("stored", case.fp8 or np.array_equal(stored, put(mix, before, np.asarray(keys), np.asarray(values), table))),
        ("padding", not got[~real].any()),
    ]
    bad = ", ".join(name for name, good in wrong if not good)
    name = f"h{case.heads}/{case.kv_heads} d{case.head_dim} page {case.page} {case.dtype}{' fp8' if case.fp8 else ''}"
    name += f" {case.decodes}+{case.prompt}{'' if case.together else ' two launches'}"
    return Outcome(name, not bad, f"relative error {error:.1e}, log-sum-exp {off:.1e}{bad and f'; wrong: {bad}'}")


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    """`|got - wanted| / |wanted|`; infinity for NaN and infinities."""
    norm = float(np.linalg.norm(wanted))
    error = float(np.linalg.norm(got - wanted)) / norm if norm else float(np.abs(got).max(initial=0))
    return error if np.isfinite(error) else float("inf")


def put(mix: Mix, pool: np.ndarray, keys: np.ndarray, values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """A copy of a pool with the rows of a mix stored in it."""
    pool, page = pool.copy(), mix.case.page
    for row, count, slot, start, _, stored in mix.runs:
        for at in range(count if stored else 0):
            held, offset = table[slot, (start + at) // page], (start + at) % page
            pool[LAYER, 0, held, :, offset], pool[LAYER, 1, held, :, offset] = keys[row + at], values[row + at]
    return pool


def all_cases(seed: int, eight_bits: bool) -> Iterator[Outcome]:
    """Check every case on random mixes and around page borders; some in two launches, and some in eight bits.

    A few cases run in parallel, because compiling and the host's arithmetic take most of the time.
    """
    more = [replace(CASES[2], together=False), replace(CASES[0], together=False)]
    more += [replace(CASES[at], fp8=True) for at in (0, 2, 3)] if eight_bits else []

    def check(numbered: tuple[int, Case]) -> Outcome:
        number, one = numbered
        rng, attention = np.random.default_rng((seed, number)), attention_of(one)
        run = program(attention)
        mixes = [*(random_mix(one, rng) for _ in range(3)), *border_mixes(one)]
        outcomes = [check_case(mix, attention, run, rng) for mix in mixes]
        return min(outcomes, key=lambda outcome: outcome.passed)

    with ThreadPoolExecutor(CASES_AT_ONCE) as pool:
        yield from pool.map(check, enumerate([*CASES, *more]))


def check_large_pool(gigabytes: int = 9) -> Outcome:
    """Check a pool beyond 2^32 elements: its last layer gives the same bits as that layer alone."""
    shape = Shape(page=128)
    pages = 512 + 1
    layers = max(2, gigabytes * 10**9 // (2 * 2 * pages * shape.kv_heads * shape.page * shape.head_dim))
    attention = kernels_for(shape)
    pool = random_pool(shape, 512 * shape.page, seed=3, layers=layers)
    assert not isinstance(pool, Fp8Pool)
    made = prepare(shape, Load((20000, 1, 4096), 300, 30000), attention, pool=pool)
    one = pool[-1:]
    run = jax.jit(attention.attend)
    poison()
    last = run(made.queries, pool, jnp.int32(layers - 1), made.table, made.work)
    alone = run(made.queries, one, jnp.int32(0), made.table, made.work)
    same = all(bool((a == b).all()) for a, b in zip(last, alone, strict=True))
    return Outcome(f"pool of {pool.size / 1e9:.1f}e9 elements", same, f"layer {layers - 1} as alone: {same}")


def check_million(context: int = 2**20) -> Iterator[Outcome]:
    """Check a decode and a chunk of 64 at a million tokens, cut into many parts: one head and some rows in float64."""
    shape = Shape()
    attention = kernels_for(shape)
    pool = random_pool(shape, context + shape.page, seed=4)
    assert not isinstance(pool, Fp8Pool)
    for load in (Load(decodes=(context,)), Load(queries=64, context=context)):
        made = prepare(shape, load, attention, pool=pool)
        poison()
        out, lse = made.runner()()
        pages = np.asarray(made.table)[0, : -(-context // shape.page)]
        head = shape.kv_heads - 1
        held = pool[0, :, pages, head].transpose(1, 0, 2, 3).reshape(2, -1, shape.head_dim)
        keys, values = np.asarray(held.astype(jnp.float32)).astype(np.float64)[:, :context]
        rows = [(0, context)] if load.decodes else [(1, context - 63), (64, context)]
        worst = 0.0
        for row, seen in rows:
            query = np.asarray(made.queries[row, -1], np.float64)
            scores = keys[:seen] @ query / np.sqrt(shape.head_dim)
            weights = np.exp(scores - scores.max())
            wanted = weights @ values[:seen] / weights.sum()
            worst = max(worst, relative(np.asarray(out[row, -1], np.float64), wanted))
            off = abs(float(lse[row, -1]) - float(scores.max() + np.log(weights.sum())))
            worst = worst if off < LSE_ERROR else float("inf")
        parts = int(np.asarray(made.work.merges)[:, 4].max())
        name = f"{'decode' if load.decodes else 'chunk of 64'} at {context:,}"
        yield Outcome(name, worst <= LARGEST_ERROR["bfloat16"], f"relative error {worst:.1e}, {parts} parts a tile")
