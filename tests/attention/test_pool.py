"""The eight-bit pool: what is stored depends on each token alone, and is exact again in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from medha_jax.attention import Fp8Pool, attend, empty_pool, store
from medha_jax.attention.pool import LOWEST_EXPONENT, from_fp8, to_fp8
from tests.compiling import FOR_MANY_TICKS
from tools.attention_cases import LAYER, LAYERS, SLOTS, Case, Mix, random_mix

CASE = Case(heads=4, kv_heads=2, head_dim=16, page=16, keys=16, decode_keys=16, dtype="bfloat16", fp8=True)


def random_rows(rng: np.random.Generator, count: int) -> np.ndarray:
    """Rows of every magnitude, from nothing to the largest floats."""
    scale = 2.0 ** rng.integers(-140, 120, (count, 1))
    return (rng.normal(size=(count, 32)) * scale).astype(np.float32)


def test_exponents_are_the_least_that_keep_the_largest_element_in_range() -> None:
    rows = np.concatenate([random_rows(np.random.default_rng(0), 500), [[448.0] * 32, [449.0] * 32, [0.0] * 32]])
    values, exponents = map(np.asarray, to_fp8(jnp.asarray(rows, jnp.float32)))
    largest = np.abs(rows.astype(np.float64)).max(-1)
    wanted = np.ceil(np.log2(np.maximum(largest, 2.0**-140) / 448))
    np.testing.assert_array_equal(exponents, np.maximum(wanted, LOWEST_EXPONENT))
    assert np.isfinite(values.astype(np.float32)).all()


def test_values_are_rounded_to_nearest_and_exact_in_wider_dtypes() -> None:
    rows = random_rows(np.random.default_rng(1), 500)
    values, exponents = to_fp8(jnp.asarray(rows))
    scaled = rows.astype(np.float64) / 2.0 ** np.asarray(exponents, np.float64)[:, None]
    wanted = scaled.astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(np.asarray(values).view(np.uint8), wanted.view(np.uint8))
    exact = wanted.astype(np.float64) * 2.0 ** np.asarray(exponents, np.float64)[:, None]
    for dtype in (jnp.float32, jnp.bfloat16):
        np.testing.assert_array_equal(np.asarray(from_fp8(values, exponents, dtype), np.float64), exact)
    kept = np.abs(scaled) >= 2.0**-6  # e4m3's smallest normal number
    assert (np.abs(exact - rows)[kept] <= np.abs(rows)[kept] / 16).all()


def test_attention_over_it_is_attention_over_a_bfloat16_pool_of_the_rounded_values() -> None:
    rng = np.random.default_rng(2)
    run = jax.jit(attend, compiler_options=FOR_MANY_TICKS)  # both programs sum in one order only where LLVM vectorises
    for _ in range(3):
        mix = random_mix(CASE, rng)
        rows = CASE.decodes + CASE.prompt
        queries = jnp.asarray(rng.normal(size=(rows, 4, 16)), jnp.bfloat16)
        table = jnp.asarray(rng.permutation(SLOTS * CASE.width).reshape(SLOTS, -1), jnp.int32)
        pool = Fp8Pool(*to_fp8(jnp.asarray(rng.normal(size=(LAYERS, 2, table.size, 2, 16, 16)))))
        wide = from_fp8(pool.values, pool.exponents, jnp.bfloat16)
        mine = run(queries, pool, jnp.int32(LAYER), table, mix.xla_work())
        theirs = run(queries, wide, jnp.int32(LAYER), table, mix.xla_work())
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))


@pytest.mark.parametrize("cuts", [(1, 2, 3, 34), (17, 23), (40,)])
def test_what_is_stored_does_not_depend_on_the_chunks(cuts: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    keys, values = (jnp.asarray(random_rows(rng, 40).reshape(40, 2, 16)) for _ in range(2))
    table = jnp.asarray(np.arange(SLOTS * CASE.width).reshape(SLOTS, -1), jnp.int32)

    def stored(cuts: tuple[int, ...]) -> Fp8Pool:
        pool = empty_pool((LAYERS, 2, table.size, 2, 16, 16), jnp.dtype("float32"), fp8=True)
        done = 0
        for count in cuts:
            run = (CASE.decodes, count, 0, done, done + count, True)
            rows = jnp.zeros((CASE.decodes + CASE.prompt, 2, 16))
            put = [rows.at[CASE.decodes : CASE.decodes + count].set(x[done : done + count]) for x in (keys, values)]
            pool = STORE(pool, jnp.int32(LAYER), table, *put, Mix(replace(CASE, chunks=1), (run,)).xla_work())
            done += count
        return pool

    for one, other in zip(jax.tree.leaves(stored(cuts)), jax.tree.leaves(stored((20, 20))), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


STORE = jax.jit(store)
