from __future__ import annotations

import pytest

from medha_jax.config import MeshConfig, RuntimeConfig
from medha_jax.specs.sizes import UNBOUNDED, Sizes, pages_for, parts_of


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (64, 1), (65, 2), (10_000_000, 156_250)])
def test_pages_for(tokens: int, pages: int) -> None:
    assert pages_for(tokens, 64) == pages


def test_parts_by_hand() -> None:
    # parts of 32 tokens in pages of 4: 8 pages each, and 10 tokens more in 3
    assert parts_of(74, 32, 4) == (8, 8, 3)
    assert parts_of(64, 32, 4) == (8, 8)
    assert parts_of(1, 32, 4) == (1,)


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
    ],
)
def test_sizes_by_hand(mesh: dict[str, int], settings: dict[str, int], sizes: Sizes) -> None:
    assert Sizes.of(RuntimeConfig(mesh=MeshConfig(page_size=16, **mesh), **settings), context=100) == sizes
