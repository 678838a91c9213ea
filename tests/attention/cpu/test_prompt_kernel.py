"""Prompt rows of the kernel for CPUs: in any chunks, beside any others, from any thread, for any processor."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.attention import AttentionWork, Tiles, choose
from medha_jax.native import compiled

HEADS, GROUP, DIM, PAGE = 2, 3, 16, 32
ROWS, TILES, SLOT_PAGES = 300, 6, 16
ROW = st.integers(0, ROWS)
MOST = SLOT_PAGES * PAGE


@cache
def program(heads: int = HEADS, group: int = GROUP, dim: int = DIM, page: int = PAGE, setting: str = "llvm"):
    attention = choose(setting, jax.devices("cpu")[0], heads, group, dim, page, jnp.dtype("float32"), fp8=False)

    @jax.jit
    def run(queries, pool, table, tiles):
        none = jnp.zeros(0, jnp.int32)
        work = AttentionWork(none, none, none, jnp.int32(0), (tiles,))
        return attention.attend(queries, pool, jnp.int32(0), table, work)

    return run


@cache
def filled(heads: int = HEADS, group: int = GROUP, dim: int = DIM, page: int = PAGE):
    """Queries, pool and page table of one request."""
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(ROWS, heads * group, dim)).astype(np.float32)
    pool = rng.normal(size=(1, 2, SLOT_PAGES, heads, page, dim)).astype(np.float32)
    return queries, pool, rng.permutation(SLOT_PAGES).reshape(1, -1).astype(np.int32)


def tiles_of(runs: Sequence[tuple[int, int]], start: int, limit: int = MOST) -> Tiles:
    """A tile for each (first row, rows); row r is at position `start + r`."""
    columns = np.zeros((2, TILES), np.int32)
    columns[:, : len(runs)] = np.array(runs, np.int32).reshape(-1, 2).T
    row, count = jnp.asarray(columns)
    nothing = jnp.zeros(TILES, jnp.int32)
    full = jnp.full(TILES, limit, jnp.int32)
    return Tiles(nothing, row, start + row, count, full, nothing, jnp.int32(len(runs)), size=ROWS)


@settings(max_examples=40)
@given(cuts=st.sets(ROW, max_size=TILES - 1), start=st.integers(0, MOST - ROWS))
def test_a_row_is_the_same_in_all_chunks(cuts: set[int], start: int) -> None:
    edges = [0, *sorted(cuts - {0, ROWS}), ROWS]
    runs = [(first, past - first) for first, past in pairwise(edges)]
    whole = program()(*filled(), tiles_of([(0, ROWS)], start))
    for one, other in zip(program()(*filled(), tiles_of(runs, start)), whole, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=40)
@given(first=ROW, past=ROW, start=st.integers(-ROWS, MOST), limit=st.integers(0, MOST))
def test_rows_see_what_is_held_and_others_are_zero(first: int, past: int, start: int, limit: int) -> None:
    """On a group that holds a part of the context, rows begin before it, in it or after it."""
    queries, pool, table = filled()
    count = max(0, past - first)
    out, lse = (np.asarray(x) for x in program()(queries, pool, table, tiles_of([(first, count)], start, limit)))
    keys, values = pool[0][:, table[0]].transpose(0, 2, 1, 3, 4).reshape(2, HEADS, MOST, DIM).astype(np.float64)
    seen = np.zeros(ROWS, int)
    seen[first : first + count] = np.clip(start + np.arange(first, first + count) + 1, 0, limit)
    split = queries.reshape(ROWS, HEADS, GROUP, DIM).astype(np.float64)
    scores = np.einsum("rhgd,htd->rhgt", split, keys) / np.sqrt(DIM)
    weights = np.exp(scores) * (np.arange(MOST) < seen[:, None, None, None])
    total = weights.sum(-1, keepdims=True)
    expected = np.einsum("rhgt,htd->rhgd", weights / np.where(total, total, 1), values)
    np.testing.assert_allclose(out, expected.reshape(out.shape), atol=1e-5)
    none = seen == 0
    assert not out[none].any() and np.isneginf(lse[none]).all()
    np.testing.assert_allclose(lse[~none], np.log(total[~none]).reshape(-1, HEADS * GROUP), atol=1e-5)


def test_many_calls_at_a_time_do_not_disturb_each_other() -> None:
    given = [tiles_of([(row, ROWS - row)], start) for row in range(0, ROWS, 50) for start in range(0, 200, 20)]
    expected = [np.asarray(program()(*filled(), tiles)[0]) for tiles in given]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda tiles: np.asarray(program()(*filled(), tiles)[0]), given))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("page", [16, 256])
@pytest.mark.parametrize("lanes, registers", [(4, 16), (8, 16), (16, 32)])
def test_vectors_of_other_processors(page: int, lanes: int, registers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM divides vectors that the processor does not have."""
    here = compiled.Processor("another processor", lanes, registers)
    monkeypatch.setattr(compiled, "processor", lambda: here)
    sizes = 1, lanes, 48, page  # `program` is kept by its sizes, so each processor has a group of its own
    queries, pool, table = filled(*sizes)
    tiles = tiles_of([(0, 7), (7, ROWS // 2)], 3, page * SLOT_PAGES)
    expected = program(*sizes, "xla")(queries, pool, table, tiles)
    for one, other in zip(program(*sizes)(queries, pool, table, tiles), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
