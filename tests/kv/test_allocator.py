from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.kv.allocator import OutOfPagesError, PageAllocator


@given(st.integers(1, 30), st.lists(st.integers(-5, 8), max_size=60))
def test_no_page_is_lost_or_held_twice(pages: int, moves: list[int]) -> None:
    allocator = PageAllocator(pages)
    held: list[tuple[int, ...]] = []
    for move in moves:
        if move < 0 and held:
            allocator.release(held.pop(move % len(held)))
        elif move >= 0:
            free = allocator.free
            try:
                held.append(allocator.allocate(move))
            except OutOfPagesError:
                assert move > free == allocator.free
        owned = [page for group in held for page in group]
        assert len(owned) == len(set(owned))
        assert set(owned) <= set(range(pages))
        assert allocator.free + len(owned) == pages


def test_releasing_what_nobody_holds_is_refused_and_changes_nothing() -> None:
    allocator = PageAllocator(4)
    first = allocator.allocate(2)
    for wrong in (
        (*first, first[0]),
        (3,),
        (-1,),
        (4,),
    ):
        with pytest.raises(ValueError, match="nobody holds"):
            allocator.release(wrong)
        assert allocator.free == 2
    allocator.release(first)
    with pytest.raises(ValueError, match="nobody holds"):
        allocator.release(first)


def test_a_pool_without_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one page"):
        PageAllocator(0)
