"""Products by the kernel for CPUs: of all sizes, column by column, from any thread, for any processor."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.models import ColumnProduct, column_product
from medha_jax.models.product_kernel import BLOCK, product_module
from medha_jax.native.compiled import processor, register

SIZES = dict(outputs=st.integers(BLOCK, 120), inputs=st.integers(1, 70), columns=st.integers(16, 150))
KINDS = ((4, 16), (8, 16), (16, 32), (16, 64))


@cache
def products() -> list[ColumnProduct]:
    """The kernel for this processor, and those for others; LLVM divides vectors that this one does not have."""
    kinds = (replace(processor(), lanes=lanes, registers=registers) for lanes, registers in KINDS)
    others = [ColumnProduct(register(product_module, kind), kind.lanes) for kind in kinds]
    return [column_product(), *others]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@settings(max_examples=60)
@given(**SIZES, which=st.integers(0, len(KINDS)), number=st.integers(0, 2))
def test_against_a_product_in_float64(outputs: int, inputs: int, columns: int, which: int, number: int) -> None:
    matrices, x = random(3, outputs, inputs), random(inputs, columns, seed=1)
    product = products()[which]
    assert product.takes(outputs, columns)
    found = product([jnp.asarray(matrix) for matrix in matrices], jnp.int32(number), jnp.asarray(x))
    expected = matrices[number].astype(np.float64) @ x
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.sqrt(inputs))


@settings(max_examples=60)
@given(**SIZES, first=st.integers(0, 149), value=st.sampled_from([np.nan, np.inf, -1e38]))
def test_a_column_is_the_same_beside_any_others(
    outputs: int, inputs: int, columns: int, first: int, value: float
) -> None:
    product = products()[0]
    matrix, x = jnp.asarray(random(outputs, inputs)), random(inputs, columns, seed=1)
    first = min(first, columns - product.fewest)
    mine = slice(first, first + product.fewest)
    others = np.full_like(x, value)
    others[:, mine] = x[:, mine]
    alone = product([matrix], jnp.int32(0), jnp.asarray(x[:, mine]))
    for given_x in (x, others):
        whole = np.asarray(product([matrix], jnp.int32(0), jnp.asarray(given_x)))
        np.testing.assert_array_equal(whole[:, mine], alone)


def test_many_calls_at_a_time_do_not_disturb_each_other() -> None:
    product = products()[0]
    matrix = jnp.asarray(random(500, 300))
    given_x = [jnp.asarray(random(300, 16 + seed, seed=seed)) for seed in range(60)]
    expected = [np.asarray(product([matrix], jnp.int32(0), x)) for x in given_x]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda x: np.asarray(product([matrix], jnp.int32(0), x)), given_x))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("outputs, columns", [(BLOCK - 1, 64), (BLOCK, 1), (64, 3)])
def test_smaller_ones_are_left_to_xla(outputs: int, columns: int) -> None:
    assert not any(product.takes(outputs, columns) for product in products())
