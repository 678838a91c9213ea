"""Decode rows of the kernel for CPUs, beside any others and from any thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.attention import AttentionWork, choose
from medha_jax.attention.cpu.decode_handler import MOST_RUNS, RUN_PAGES

ROWS, HEADS, GROUP, DIM, PAGE = 6, 2, 3, 16, 4
SLOT_PAGES = 4 * RUN_PAGES
LENGTHS = st.lists(st.integers(0, SLOT_PAGES * PAGE), min_size=ROWS, max_size=ROWS)


@cache
def program(rows: int):
    attention = choose("llvm", jax.devices("cpu")[0], HEADS, GROUP, DIM, PAGE, jnp.dtype("float32"), fp8=False)

    @jax.jit
    def run(queries, pool, table, lengths):
        slots = jnp.arange(rows, dtype=jnp.int32)
        work = AttentionWork(slots, lengths, jnp.zeros(rows, jnp.int32), jnp.int32(0), ())
        return attention.attend(queries, pool, jnp.int32(0), table, work)

    return run


@cache
def filled(slot_pages: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, pool and page table."""
    rng = np.random.default_rng(0)
    pages = ROWS * slot_pages
    queries = rng.normal(size=(ROWS, HEADS * GROUP, DIM)).astype(np.float32)
    pool = rng.normal(size=(1, 2, pages, HEADS, PAGE, DIM)).astype(np.float32)
    return queries, pool, rng.permutation(pages).reshape(ROWS, slot_pages).astype(np.int32)


@settings(max_examples=40)
@given(lengths=LENGTHS, row=st.integers(0, ROWS - 1))
def test_a_row_is_the_same_alone_and_beside_others(lengths: list[int], row: int) -> None:
    queries, pool, table = filled(SLOT_PAGES)
    out, lse = program(ROWS)(queries, pool, table, np.array(lengths, np.int32))
    mine = slice(row, row + 1)
    alone = program(1)(queries[mine], pool, table[mine], np.array(lengths[mine], np.int32))
    np.testing.assert_array_equal(out[mine], alone[0])
    np.testing.assert_array_equal(lse[mine], alone[1])


def test_many_calls_at_a_time_do_not_disturb_each_other() -> None:
    queries, pool, table = filled(SLOT_PAGES)
    rng = np.random.default_rng(1)
    given = [rng.integers(0, SLOT_PAGES * PAGE + 1, ROWS).astype(np.int32) for _ in range(200)]
    run = program(ROWS)
    expected = [np.asarray(run(queries, pool, table, lengths)[0]) for lengths in given]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda lengths: np.asarray(run(queries, pool, table, lengths)[0]), given))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_long_row_has_longer_runs_and_not_more_of_them() -> None:
    slot_pages = 3 * RUN_PAGES * MOST_RUNS
    queries, pool, table = filled(slot_pages)
    lengths = np.zeros(ROWS, np.int32)
    lengths[2] = slot_pages * PAGE - 1
    out, lse = (np.asarray(x) for x in program(ROWS)(queries, pool, table, lengths))
    keys, values = (
        pool[0, kind, table[2]].transpose(1, 0, 2, 3).reshape(HEADS, -1, DIM)[:, : lengths[2]].astype(np.float64)
        for kind in (0, 1)
    )
    split = queries[2].reshape(HEADS, GROUP, DIM).astype(np.float64)
    scores = np.einsum("hgd,htd->hgt", split, keys) / np.sqrt(DIM)
    weights = np.exp(scores)
    total = weights.sum(-1, keepdims=True)
    expected = np.einsum("hgt,htd->hgd", weights / total, values).reshape(-1, DIM)
    np.testing.assert_allclose(out[2], expected, atol=1e-5)
    np.testing.assert_allclose(lse[2], np.log(total).reshape(-1), rtol=1e-5)
    others = np.arange(ROWS) != 2
    assert not out[others].any() and np.isneginf(lse[others]).all()
