"""The Triton kernels, in Triton's interpreter, against the XLA implementation and softmax in float64."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medha_jax.attention import XlaAttention, empty_pool, merge, pack
from medha_jax.attention.gpu import attend as gpu
from medha_jax.attention.gpu import items
from medha_jax.attention.rotate import rotate
from tools.attention_cases import LAYER, LAYERS, Case, Mix, border_mixes, expected, random_arrays, random_mix, wide

if find_spec("triton") is None:  # which must be imported by `interpreted` first, so no importorskip
    pytest.skip("the `kernels` extra is not installed", allow_module_level=True)
from tests.attention import interpreted

pytestmark = pytest.mark.kernels

CASES = [
    Case(heads=4, kv_heads=2, head_dim=64, page=64, keys=32, decode_keys=16, dtype="bfloat16"),
    Case(heads=8, kv_heads=1, head_dim=16, page=16, keys=32, decode_keys=64, rows=64),
    Case(heads=2, kv_heads=2, head_dim=96, page=32, keys=32, decode_keys=32, dtype="float16", together=False),
    Case(heads=7, kv_heads=1, head_dim=128, page=128, keys=64, decode_keys=32, dtype="bfloat16"),
    Case(heads=4, kv_heads=2, head_dim=256, page=16, keys=16, decode_keys=16, rows=16, dtype="float16"),
    Case(heads=3, kv_heads=3, head_dim=24, page=1, keys=16, decode_keys=32, together=False),
    Case(heads=2, kv_heads=1, head_dim=64, page=256, keys=64, decode_keys=64, dtype="float16", pages_per_slot=2),
    Case(heads=6, kv_heads=2, head_dim=96, page=64, keys=16, decode_keys=32, dtype="bfloat16"),
    Case(heads=2, kv_heads=2, head_dim=128, page=16, keys=32, decode_keys=16, dtype="float16", together=False),
    Case(heads=8, kv_heads=2, head_dim=256, page=32, keys=16, decode_keys=16, rows=16, dtype="bfloat16"),
    Case(heads=4, kv_heads=2, head_dim=64, page=64, keys=32, decode_keys=16, prompt=0, chunks=0),
    Case(heads=4, kv_heads=2, head_dim=64, page=64, keys=32, decode_keys=16, dtype="bfloat16", fp8=True),
    Case(heads=2, kv_heads=1, head_dim=96, page=16, keys=32, decode_keys=16, fp8=True, together=False),
]
TOLERANCE = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}


@pytest.fixture(autouse=True)
def in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medha_jax.attention.gpu.call", SimpleNamespace(launch=interpreted.launch))
    # short contexts would not be cut into parts
    monkeypatch.setattr(items, "LEAST_BLOCKS", 1)
    monkeypatch.setattr(items, "OVERHEAD", 0.0)


def name(case: Case) -> str:
    pool = "fp8" if case.fp8 else case.dtype
    return f"h{case.heads}/{case.kv_heads} d{case.head_dim} page {case.page} keys {case.keys}/{case.decode_keys} {pool}"


@functools.cache
def xla(case: Case):
    attention, layer = XlaAttention("the reference"), jnp.int32(LAYER)

    def run(queries, keys, values, angles, pool, table, work):
        queries, pool = attention.store(pool, layer, table, queries, keys, values, angles, work)
        return pool, *attention.attend(queries, pool, layer, table, work)

    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


def kernels(queries, keys, values, angles, pool, table, work):
    layer = np.int32(LAYER)
    queries, pool = gpu.store(pool, layer, table, queries, keys, values, angles, work, capability=90)
    return pool, *gpu.attend(queries, pool, layer, table, work, capability=90)


def test_the_cases_are_a_grid() -> None:
    """Every head_dim in both 16-bit dtypes; pages shorter and longer than a block; one to eight heads a group."""
    half = {(case.head_dim, case.dtype) for case in CASES if not case.fp8}
    assert half >= {(dim, dtype) for dim in (64, 96, 128, 256) for dtype in ("bfloat16", "float16")}
    assert {case.heads // case.kv_heads for case in CASES} >= {1, 2, 3, 4, 7, 8}
    assert {case.page for case in CASES} >= {1, 16, 32, 64, 128, 256}
    assert {np.sign(case.page - case.keys) for case in CASES} == {-1, 0, 1}
    assert {case.together for case in CASES} == {case.fp8 for case in CASES} == {True, False}


@pytest.mark.parametrize("case", CASES, ids=name)
def test_kernels_agree_with_xla_and_float64(case: Case) -> None:
    """A random mix of requests, and contexts that end around a page's border beside shards that hold nothing."""
    rng = np.random.default_rng(0)
    merged = 0
    for mix in (random_mix(case, rng), *border_mixes(case)):
        given = random_arrays(case, rng)
        work = mix.kernel_work()
        merged += np.count_nonzero(work.merges[:, 1])
        pool, out, lse = kernels(*given, work)
        xla_pool, xla_out, xla_lse = xla(case)(*given, mix.xla_work())
        for mine, theirs in zip(jax.tree.leaves(pool), jax.tree.leaves(xla_pool), strict=True):
            assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes(), "stored bit for bit"
        queries = np.asarray(rotate(given[0], *given[3]))
        wanted, wanted_lse, real = expected(mix, queries, wide(xla_pool, case.dtype), given[5])
        tolerance = TOLERANCE[case.dtype]
        np.testing.assert_allclose(out.astype(np.float64), wanted, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(lse, wanted_lse, rtol=1e-5, atol=min(tolerance, 1e-2))
        np.testing.assert_allclose(
            out[real].astype(np.float64), np.asarray(xla_out, np.float64)[real], rtol=tolerance, atol=tolerance
        )
        np.testing.assert_allclose(lse[real], xla_lse[real], rtol=1e-5, atol=min(tolerance, 1e-2))
        for row, count, _, _, limit, _ in mix.runs:
            if limit == 0:
                assert not out[row : row + count].any() and np.isneginf(lse[row : row + count]).all()
    assert merged, "no tile was cut: the second pass was not tested"


def test_a_cut_changes_the_result_by_rounding_only() -> None:
    case = Case(heads=2, kv_heads=1, head_dim=16, page=16, keys=16, decode_keys=16, prompt=8, chunks=1)
    rng = np.random.default_rng(1)
    mix = Mix(case, ((0, 1, 0, 255, 256, True), (4, 8, 1, 240, 248, True)))
    given = random_arrays(case, rng)
    whole = kernels(*given, replace_processors(mix, 1))
    cut = kernels(*given, replace_processors(mix, 12))
    assert np.count_nonzero(replace_processors(mix, 12).merges[:, 1]) == 2
    np.testing.assert_allclose(cut[1], whole[1], atol=2e-6)
    np.testing.assert_allclose(cut[2], whole[2], atol=2e-6)


def replace_processors(mix: Mix, processors: int):
    return replace(mix, case=replace(mix.case, processors=processors)).kernel_work()


@pytest.mark.parametrize("fp8", [False, True])
def test_what_is_not_finite_is_stored_as_zero_and_padding_nowhere(fp8: bool) -> None:
    case = Case(heads=2, kv_heads=2, head_dim=16, page=16, keys=16, decode_keys=16, fp8=fp8)
    mix = Mix(case, ((0, 1, 0, 3, 4, True), (4, 20, 1, 7, 27, True)))
    queries, keys, values, angles, _, table = random_arrays(case, np.random.default_rng(2))
    keys, values = keys * np.nan, values * np.inf
    empty = empty_pool((LAYERS, 2, table.size, 2, 16, 16), jnp.dtype("float32"), fp8)
    pool, out, _ = kernels(queries, keys, values, angles, empty, table, mix.kernel_work())
    assert not wide(pool, "float32").any()
    rows = [0, *range(4, 24)]
    assert np.isnan(out[rows]).all(), "zeros in the pool must not look like an answer"
    assert not np.delete(out, rows, 0).any(), "padding sees nothing"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[3], CASES[11]], ids=name)
def test_a_row_that_is_not_finite_spoils_its_own_heads_only(case: Case, value: float) -> None:
    """One element of one key or value of a decode whose context is cut into parts, and of a prompt row.

    Rows after the prompt row see the zeros that are stored for it.
    """
    rng = np.random.default_rng(5)
    most = case.context
    mix = Mix(case, ((0, 1, 0, most - 1, most, True), (1, 1, 1, 9, 10, True), (4, 20, 2, 30, 50, True)))
    queries, keys, values, angles, pool, table = random_arrays(case, rng)
    group, spoiled = case.heads // case.kv_heads, case.kv_heads - 1
    bad_keys, bad_values = keys.at[0, spoiled, 3].set(value), values.at[10, spoiled, 1].set(value)
    work = mix.kernel_work()
    assert np.count_nonzero(work.merges[:, 1])
    zeroed = keys.at[0, spoiled].set(0), values.at[10, spoiled, 1].set(0)
    _, clean, clean_lse = kernels(queries, *zeroed, angles, pool, table, work)
    after, out, lse = kernels(queries, bad_keys, bad_values, angles, pool, table, work)
    assert all(np.isfinite(np.asarray(part, np.float32)).all() for part in jax.tree.leaves(after))
    heads = slice(group * spoiled, group * (spoiled + 1))
    for row in (0, 10):
        assert np.isnan(out[row, heads]).all()
        out[row, heads], lse[row, heads] = clean[row, heads], clean_lse[row, heads]
    np.testing.assert_array_equal(out, clean)
    np.testing.assert_array_equal(lse, clean_lse)


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[4], CASES[5], CASES[12]], ids=name)
def test_any_angle_turns_queries_and_keys_as_xla_does(case: Case) -> None:
    """Within the rounding of products and sums, which XLA may fuse; eight bits may round the other way then."""
    rng = np.random.default_rng(6)
    mix = random_mix(case, rng)
    queries, keys, values, _, pool, table = random_arrays(case, rng)
    angle = rng.uniform(-np.pi, np.pi, (len(queries), case.head_dim // 2))
    angles = jnp.asarray(np.cos(angle), jnp.float32), jnp.asarray(np.sin(angle), jnp.float32)
    layer = np.int32(LAYER)
    turned, after = gpu.store(pool, layer, table, queries, keys, values, angles, mix.kernel_work(), capability=90)
    by_xla = XlaAttention("the reference").store(
        pool, jnp.int32(LAYER), jnp.asarray(table), queries, keys, values, angles, mix.xla_work()
    )
    step = float(jnp.finfo(case.dtype).eps)
    np.testing.assert_allclose(turned.astype(np.float32), np.asarray(by_xla[0], np.float32), rtol=step, atol=1e-6)
    mine, theirs = (np.asarray(wide(one, case.dtype), np.float32) for one in (after, by_xla[1]))
    np.testing.assert_allclose(mine, theirs, rtol=0.125 if case.fp8 else step, atol=1e-6)
    np.testing.assert_array_equal(mine[:, 1], theirs[:, 1], "values are not turned")


def test_parts_on_several_groups_merge_to_the_whole() -> None:
    """A decode and a chunk over three groups that hold a part each, and one that holds nothing."""
    case = Case(heads=4, kv_heads=2, head_dim=16, page=16, keys=32, decode_keys=16)
    rng = np.random.default_rng(3)
    queries, _, _, _, pool, table = random_arrays(case, rng)
    total, share, count = 170, 64, 10

    def part(first: int, past: int) -> tuple[np.ndarray, np.ndarray]:
        held, start = max(0, past - first), max(0, total - count - first)
        here = np.zeros_like(table)
        here[0, : -(-held // case.page)] = table[0, first // case.page : -(-past // case.page)]
        decode, chunk = (0, 1, 0, max(0, held - 1), held, False), (4, count, 0, start, held, False)
        work = Mix(case, (decode, chunk)).kernel_work()
        return gpu.attend(queries, pool, np.int32(LAYER), here, work, capability=90)

    rows = [0, *range(4, 4 + count)]
    whole, whole_lse = (x[rows] for x in part(0, total))
    parts = [part(group * share, min(total, (group + 1) * share)) for group in range(4)]
    assert not parts[3][0].any() and np.isneginf(parts[3][1]).all(), "the last group holds nothing"
    outs, logs = (np.stack([one[at][rows] for one in parts]) for at in (0, 1))
    merged = merge(jnp.stack([pack(jnp.asarray(out), jnp.asarray(log)) for out, log in zip(outs, logs, strict=True)]))
    np.testing.assert_allclose(merged, whole, atol=2e-6)
    np.testing.assert_allclose(np.logaddexp.reduce(logs), whole_lse, atol=2e-6)


@pytest.mark.parametrize(
    ("groups", "heads", "head_dim", "dtype"),
    [(2, 4, 64, "bfloat16"), (4, 3, 96, "float16"), (3, 2, 128, "float32"), (17, 1, 24, "bfloat16")],
)
def test_groups_merge_as_in_xla(groups: int, heads: int, head_dim: int, dtype: str) -> None:
    """Rows that one group, some or none saw a token of; a row that is NaN on one group; all others stay as they are."""
    rng = np.random.default_rng(7)
    first, shared = 3, 7
    out = jnp.asarray(rng.normal(size=(first + shared + 2, heads, head_dim)), dtype)
    parts = jnp.asarray(rng.normal(size=(groups, shared, heads, head_dim)), dtype)
    logs = rng.normal(size=(groups, shared, heads)).astype(np.float32) * 20
    logs[1:, 0], logs[0, 1], logs[:, 2] = -np.inf, -np.inf, -np.inf
    parts = jnp.where(np.isneginf(logs)[..., None], 0, parts).at[0, 4].set(jnp.nan)
    logs[0, 4] = -np.inf  # as the kernels leave it
    packed = jax.vmap(pack)(parts, jnp.asarray(logs))
    got = np.asarray(gpu.merge_groups(out, packed, first, capability=90), np.float32)
    wanted = np.asarray(XlaAttention("the reference").merge_groups(out, packed, first), np.float32)
    np.testing.assert_allclose(got, wanted, rtol=float(jnp.finfo(dtype).eps), atol=2e-6)
    np.testing.assert_array_equal(
        np.delete(got, range(first, first + shared), 0), np.asarray(out, np.float32)[[*range(first), -2, -1]]
    )
    assert not got[first + 2].any() and np.isnan(got[first + 4]).all()
    assert np.isfinite(np.delete(got, first + 4, 0)).all()
