from __future__ import annotations

from typing import Any

import pytest

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.specs.sizes import GPU_ROWS, UNBOUNDED, Sizes, pages_for, parts_of, row_parts, without_unused_slices


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (64, 1), (65, 2), (10_000_000, 156_250)])
def test_pages_for(tokens: int, pages: int) -> None:
    assert pages_for(tokens, 64) == pages


def test_parts_by_hand() -> None:
    # parts of 32 tokens in pages of 4: 8 pages each, and 10 tokens more in 3
    assert parts_of(74, 32, 4) == (8, 8, 3)
    assert parts_of(64, 32, 4) == (8, 8)
    assert parts_of(1, 32, 4) == (1,)


def test_rows_are_halved_from_a_number_on() -> None:
    assert row_parts(1000, None) == row_parts(1000, 1001) == (1000,)
    assert row_parts(1000, 1000) == (496, 504)
    least = MeshConfig(tp=2, overlap_rows=16).overlap_rows
    for rows in range(16, 300):
        first, second = row_parts(rows, least)
        assert first + second == rows and 0 <= second - first < 2 * GPU_ROWS
        assert first >= GPU_ROWS and first % GPU_ROWS == 0 and (rows % GPU_ROWS or second % GPU_ROWS == 0)


@pytest.mark.parametrize(
    ("mesh", "settings", "sizes"),
    [
        # a table of 100 tokens has 7 pages of 16, filled up to the 16 pages of a block
        ({}, {}, Sizes(100, UNBOUNDED, 7, 16)),
        ({}, {"max_context": 1000}, Sizes(100, UNBOUNDED, 7, 16)),
        ({}, {"max_context": 33, "pool_tokens": 65}, Sizes(33, UNBOUNDED, 5, 16)),
        ({"kvp": 2}, {}, Sizes(100, 112, 7, 16)),
        ({"kvp": 2, "tokens_per_group": 32}, {}, Sizes(64, 32, 2, 16)),
        ({"kvp": 4, "tokens_per_group": 48}, {"pool_tokens": 1000}, Sizes(100, 48, 63, 16)),
        # pools below the context: of one group, of one of two groups, and of two that share requests
        ({}, {"pool_tokens": 65}, Sizes(80, UNBOUNDED, 5, 16)),
        ({"kvp": 2, "shared_buckets": None}, {"pool_tokens": 65}, Sizes(80, 112, 5, 16)),
        ({"kvp": 2}, {"pool_tokens": 41}, Sizes(96, 48, 3, 16)),
        ({"kvp": 2, "tokens_per_group": 48}, {"pool_tokens": 32}, Sizes(32, 48, 2, 16)),
    ],
)
def test_sizes_by_hand(mesh: dict[str, Any], settings: dict[str, int], sizes: Sizes) -> None:
    assert Sizes.of(RuntimeConfig(mesh=MeshConfig(page_size=16, **mesh), **settings), context=100) == sizes


@pytest.mark.parametrize(
    ("mesh", "context", "own", "shared"),
    [
        ({}, 5000, (128, 512, 2048), (256,)),
        ({}, 2048, (128, 512, 2048), (256,)),
        ({}, 513, (128, 512, 2048), (256,)),
        ({}, 512, (128, 512), (256,)),
        ({}, 10, (128,), (256,)),
        ({"kvp": 2, "tokens_per_group": 128}, 5000, (128,), (256,)),
        ({"kvp": 4, "tokens_per_group": 192}, 5000, (128, 512), (256,)),
    ],
)
def test_sizes_of_slices_that_no_chunk_needs_are_left_out(
    mesh: dict[str, int], context: int, own: tuple[int, ...], shared: tuple[int, ...]
) -> None:
    config = RuntimeConfig(mesh=MeshConfig(buckets=Buckets(slices=(128, 512, 2048)), **mesh))
    found = without_unused_slices(config, context).mesh
    assert (found.buckets.slices, found.shared_buckets and found.shared_buckets.slices) == (own, shared)


def test_a_layout_without_slices_stays_without() -> None:
    config = RuntimeConfig(mesh=MeshConfig(buckets=Buckets(slices=()), shared_buckets=None))
    assert without_unused_slices(config, 100) == config
