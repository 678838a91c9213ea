"""The attention of CPUs and its KV writes against softmax in float64, over random mixes of requests.

Decodes by XLA and by the kernel that LLVM compiles.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.attention import AttentionWork, Tiles, attend, choose, merge, pack

SLOTS, LAYERS, LAYER = 6, 2, 1
DECODES, TILES = 5, 4


@dataclass(frozen=True)
class Case:
    """Sizes that a program is compiled for."""

    heads: int
    kv_heads: int
    head_dim: int
    page: int
    tile: int
    dtype: str = "float32"
    attention: str = "xla"

    @property
    def rows(self) -> int:
        return DECODES + TILES * self.tile

    @property
    def pages_per_slot(self) -> int:
        return max(1, 512 // self.page) * 3


@functools.cache
def program(case: Case):
    group, dtype = case.heads // case.kv_heads, jnp.dtype(case.dtype)
    device = jax.devices("cpu")[0]
    attention = choose(case.attention, device, case.kv_heads, group, case.head_dim, case.page, dtype, fp8=False)
    assert attention.name == case.attention

    @jax.jit
    def run(queries, keys, values, pool, table, work):
        angles = jnp.ones((case.rows, case.head_dim // 2)), jnp.zeros((case.rows, case.head_dim // 2))
        queries, pool = attention.store(pool, jnp.int32(LAYER), table, queries, keys, values, angles, work)
        return pool, *attention.attend(queries, pool, jnp.int32(LAYER), table, work)

    return run


def random_work(case: Case, rng: np.random.Generator):
    """A mix of decodes and tiles of different slots, and the (slot, position) of every row."""
    most = case.page * case.pages_per_slot
    slots = rng.permutation(SLOTS)
    decodes = int(rng.integers(0, DECODES + 1))
    where = np.full((case.rows, 2), -1)
    lengths = np.zeros(DECODES, np.int32)
    for row in range(decodes):
        # context ends at page borders matter most
        length = int(rng.choice([1, case.page, case.page + 1, rng.integers(1, most + 1)]))
        lengths[row] = length
        where[row] = slots[row], length - 1
    left = list(slots[decodes:])
    tiles = {name: np.zeros(TILES, np.int32) for name in ("slot", "row", "start", "count")}
    row, used = DECODES, 0
    while left and used < TILES:
        slot = left.pop()
        start = int(rng.choice([0, case.page, rng.integers(0, most - 2 * case.tile)]))
        for _ in range(int(rng.integers(1, 3))):
            if used == TILES:
                break
            count = int(rng.integers(1, case.tile + 1))
            for name, value in (("slot", slot), ("row", row), ("start", start), ("count", count)):
                tiles[name][used] = value
            where[row : row + count, 0] = slot
            where[row : row + count, 1] = np.arange(start, start + count)
            row, start, used = row + count, start + count, used + 1
    tiles["limit"], tiles["stored"] = tiles["start"] + tiles["count"], tiles["count"]
    # tiles of one slot follow each other, and what a later one stores is there too
    for at in range(used):
        same = (tiles["slot"][:used] == tiles["slot"][at]).nonzero()[0]
        tiles["limit"][at] = (tiles["start"] + tiles["count"])[same].max()
    work = AttentionWork(
        decode_slots=jnp.asarray(np.where(lengths > 0, slots[:DECODES], 0).astype(np.int32)),
        decode_lengths=jnp.asarray(lengths),
        write_row=jnp.asarray(rng.permutation(decodes).tolist() + [0] * (DECODES - decodes), jnp.int32),
        writes=jnp.int32(decodes),
        tiles=(Tiles(**{k: jnp.asarray(v) for k, v in tiles.items()}, used=jnp.int32(used), size=case.tile),),
    )
    return work, where


@pytest.mark.parametrize(
    "case",
    [
        Case(heads=4, kv_heads=2, head_dim=16, page=64, tile=16),
        Case(heads=8, kv_heads=1, head_dim=32, page=16, tile=40),
        Case(heads=3, kv_heads=3, head_dim=8, page=512, tile=33),
        Case(heads=6, kv_heads=2, head_dim=12, page=1, tile=5),
        Case(heads=4, kv_heads=2, head_dim=16, page=64, tile=16, dtype="bfloat16"),
        Case(heads=4, kv_heads=2, head_dim=16, page=64, tile=16, attention="llvm"),
        Case(heads=8, kv_heads=1, head_dim=128, page=16, tile=40, attention="llvm"),
        Case(heads=3, kv_heads=3, head_dim=8, page=512, tile=33, attention="llvm"),
        Case(heads=6, kv_heads=2, head_dim=12, page=1, tile=5, attention="llvm"),
        Case(heads=10, kv_heads=2, head_dim=96, page=2, tile=5, attention="llvm"),
        Case(heads=8, kv_heads=2, head_dim=64, page=64, tile=16, dtype="bfloat16", attention="llvm"),
    ],
    ids=str,
)
def test_against_softmax_in_float64(case: Case) -> None:
    rng = np.random.default_rng(0)
    dtype = jnp.dtype(case.dtype)
    pages = SLOTS * case.pages_per_slot
    group = case.heads // case.kv_heads
    for _ in range(8):
        work, where = random_work(case, rng)
        table = rng.permutation(pages).reshape(SLOTS, -1).astype(np.int32)
        pool = rng.normal(size=(LAYERS, 2, pages, case.kv_heads, case.page, case.head_dim))
        pool = np.asarray(jnp.asarray(pool, dtype))
        shapes = [(case.rows, heads, case.head_dim) for heads in (case.heads, case.kv_heads, case.kv_heads)]
        queries, keys, values = (np.asarray(jnp.asarray(rng.normal(size=s) * 2, dtype)) for s in shapes)
        after, out, lse = program(case)(queries, keys, values, pool, table, work)

        expected_pool = pool.copy()
        for row, (slot, position) in enumerate(where):
            if slot >= 0:
                page, offset = table[slot, position // case.page], position % case.page
                expected_pool[LAYER, 0, page, :, offset] = keys[row]
                expected_pool[LAYER, 1, page, :, offset] = values[row]
        np.testing.assert_array_equal(np.asarray(after), expected_pool)

        wide = expected_pool.astype(np.float64)
        tolerance = 2e-5 if case.dtype == "float32" else 3e-2
        for row, (slot, position) in enumerate(where):
            if slot < 0:
                assert not np.asarray(out[row], np.float32).any()
                assert np.isneginf(lse[row]).all()
                continue
            held = wide[LAYER][:, table[slot]].transpose(0, 1, 3, 2, 4)
            seen = held.reshape(2, -1, case.kv_heads, case.head_dim)[:, : position + 1].repeat(group, 2)
            scores = np.einsum("hd,thd->ht", queries[row].astype(np.float64), seen[0]) / np.sqrt(case.head_dim)
            top = scores.max(-1, keepdims=True)
            weights = np.exp(scores - top)
            total = weights.sum(-1, keepdims=True)
            np.testing.assert_allclose(lse[row], (top + np.log(total))[:, 0], atol=tolerance, rtol=1e-5)
            expected = np.einsum("ht,thd->hd", weights / total, seen[1])
            np.testing.assert_allclose(np.asarray(out[row], np.float64), expected, atol=tolerance, rtol=tolerance)


def test_a_request_without_numbers_does_not_reach_its_neighbours() -> None:
    case = Case(heads=4, kv_heads=2, head_dim=16, page=64, tile=16)
    rng = np.random.default_rng(1)
    work, where = random_work(case, rng)
    table = rng.permutation(SLOTS * case.pages_per_slot).reshape(SLOTS, -1).astype(np.int32)
    pool = np.zeros((LAYERS, 2, table.size, case.kv_heads, case.page, case.head_dim), np.float32)
    queries = rng.normal(size=(case.rows, case.heads, case.head_dim)).astype(np.float32)
    keys, values = rng.normal(size=(2, case.rows, case.kv_heads, case.head_dim)).astype(np.float32)
    slots = np.unique(where[where[:, 0] >= 0, 0])
    assert len(slots) > 2
    spoiled = np.isin(where[:, 0], slots[:2])
    keys[where[:, 0] == slots[0]], values[where[:, 0] == slots[1], 0, 0] = np.nan, np.inf
    after, out, _ = program(case)(queries, keys, values, pool, table, work)
    assert np.isfinite(after).all()
    assert np.isnan(out[spoiled]).all(), "zeros in the pool must not look like an answer"
    assert np.isfinite(out[~spoiled]).all()


@pytest.mark.parametrize("attention", ["xla", "llvm"])
@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1), value=st.sampled_from([np.nan, np.inf, -np.inf, 1e38, -1e38]), whole=st.booleans()
)
def test_rows_are_independent_whatever_they_hold(attention: str, seed: int, value: float, whole: bool) -> None:
    case = Case(heads=4, kv_heads=2, head_dim=16, page=64, tile=16, attention=attention)
    rng = np.random.default_rng(seed)
    work, where = random_work(case, rng)
    table = rng.permutation(SLOTS * case.pages_per_slot).reshape(SLOTS, -1).astype(np.int32)
    pool = rng.normal(size=(LAYERS, 2, table.size, case.kv_heads, case.page, case.head_dim)).astype(np.float32)
    keys, values = rng.normal(size=(2, case.rows, case.kv_heads, case.head_dim)).astype(np.float32)
    queries = rng.normal(size=(case.rows, case.heads, case.head_dim)).astype(np.float32)
    poisoned = queries.copy()
    rows = rng.choice(case.rows, 3, replace=False)
    poisoned[rows] = value if whole else poisoned[rows]
    poisoned[rows, :, 3] = value
    _, clean, clean_lse = (np.asarray(x) for x in program(case)(queries, keys, values, pool, table, work))
    _, out, lse = (np.asarray(x) for x in program(case)(poisoned, keys, values, pool, table, work))
    others = np.setdiff1d(np.arange(case.rows), rows)
    np.testing.assert_array_equal(out[others], clean[others])
    np.testing.assert_array_equal(lse[others], clean_lse[others])
    for row in rows:
        if where[row, 0] >= 0 and abs(value) != 1e38:
            assert not np.isfinite(out[row]).all(-1).any(), "it must not look like a good row"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_on_several_groups_merge_to_the_whole(dtype: str) -> None:
    """Rows see what each group holds of one request: all, a part, nothing; merged they see all of it."""
    case = Case(heads=4, kv_heads=2, head_dim=16, page=64, tile=16, dtype=dtype)
    rng = np.random.default_rng(2)
    total, per_group, groups = 700, 256, 4
    start = total - case.tile
    shape = (LAYERS, 2, SLOTS * case.pages_per_slot, case.kv_heads, case.page, case.head_dim)
    pool = np.asarray(jnp.asarray(rng.normal(size=shape), dtype))
    table = rng.permutation(shape[2]).reshape(SLOTS, -1).astype(np.int32)
    queries = jnp.asarray(rng.normal(size=(case.rows, case.heads, case.head_dim)) * 2, dtype)

    def part(first: int, past: int):
        """Tile 0 and decode row 0 at the end of the request, where the pages from `first` to `past` are held."""
        held = max(0, past - first)
        here = np.zeros_like(table)
        here[0, : -(-held // case.page)] = table[0, first // case.page : -(-past // case.page)]
        one = {name: jnp.zeros(TILES, jnp.int32) for name in ("slot", "stored")}
        tiles = Tiles(
            **one,
            row=jnp.full(TILES, DECODES, jnp.int32),
            start=jnp.full(TILES, max(0, start - first), jnp.int32),
            count=jnp.full(TILES, case.tile, jnp.int32),
            limit=jnp.full(TILES, held, jnp.int32),
            used=jnp.int32(1),
            size=case.tile,
        )
        lengths = jnp.zeros(DECODES, jnp.int32).at[0].set(held)
        work = AttentionWork(
            jnp.zeros(DECODES, jnp.int32), lengths, jnp.zeros(DECODES, jnp.int32), jnp.int32(0), (tiles,)
        )
        return jax.jit(attend)(queries, pool, jnp.int32(LAYER), jnp.asarray(here), work)

    whole, _ = part(0, total)
    parts = []
    for group in range(groups):
        out, lse = part(group * per_group, min(total, (group + 1) * per_group))
        parts.append(pack(out, lse))
        if group == groups - 1:
            assert np.isneginf(np.asarray(lse)).all(), "the last group holds nothing"
    assert parts[0].nbytes == case.rows * case.heads * (case.head_dim * jnp.dtype(dtype).itemsize + 4)
    merged = merge(jnp.stack(parts))
    tolerance = 2e-6 if dtype == "float32" else 2e-2
    rows = [0, *range(DECODES, DECODES + case.tile)]
    got, expected = (np.asarray(x, np.float32)[rows] for x in (merged, whole))
    np.testing.assert_allclose(got, expected, atol=tolerance, rtol=tolerance)
    assert not np.asarray(merged, np.float32)[DECODES + case.tile :].any(), "nobody sees anything: 0, not NaN"
