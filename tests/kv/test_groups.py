from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.kv.allocator import OutOfPagesError
from medha_jax.kv.groups import GroupedPages
from medha_jax.kv.holding import Holding

PAGE, PER_GROUP = 4, 16


def test_positions_follow_the_order_of_allocation() -> None:
    held = Holding(groups=(2, 0), pages=[[5, 6, 7, 8], [1, 9]], per_group=PER_GROUP, page_size=PAGE)
    assert held.owners(0) == held.owners(15) == (2,)
    assert held.owners(16) == (2, 0)
    assert held.new_pages(0, 5) == (0, (5, 6))
    assert held.new_pages(5, 8) == (2, ())
    assert held.new_pages(16, 21) == (0, (1, 9))


@given(st.integers(1, 3), st.integers(1, 8), st.lists(st.integers(-6, 60), max_size=40))
def test_every_page_a_request_uses_is_its_own_and_comes_back(groups: int, pages: int, moves: list[int]) -> None:
    pools = GroupedPages(groups, pages, PAGE, PER_GROUP)
    held: list[tuple[int, Holding]] = []
    for move in moves:
        if move < 0 and held:
            pools.release(held.pop(move % len(held))[1])
        elif move > 0:
            free = pools.free
            try:
                held.append((move, pools.reserve(move)))
            except OutOfPagesError:
                assert pools.free == free
            else:
                pools.take(held[-1][1], move)
        owned = [(g, p) for _, h in held for g, part in zip(h.groups, h.pages, strict=True) for p in part]
        assert len(owned) == len(set(owned))
        assert sum(pools.free) + len(owned) == groups * pages
    for tokens, holding in held:
        assert len(set(holding.groups)) == len(holding.groups)
        used = []
        for position in range(tokens):
            first, new = holding.new_pages(position, position + 1)
            used += [(holding.owners(position)[-1], page) for page in new]
            assert not new or first == position % PER_GROUP // PAGE
        assert used == [(g, p) for g, part in zip(holding.groups, holding.pages, strict=True) for p in part]


def test_what_never_fits_is_told_with_the_numbers() -> None:
    pools = GroupedPages(2, 3, PAGE, PER_GROUP)
    with pytest.raises(OutOfPagesError, match="33 tokens need 3 KV groups of 16 tokens; there are 2"):
        pools.check(33)
    with pytest.raises(OutOfPagesError, match="14 tokens need 4 KV pages; the pool has 3"):
        pools.check(14)
    pools.check(12)


def test_the_emptiest_group_is_taken_first() -> None:
    pools = GroupedPages(3, 8, PAGE, PER_GROUP)
    assert pools.reserve(5).groups == (0,)
    assert pools.reserve(5).groups == (1,)
    assert pools.reserve(20).groups == (2, 0)
