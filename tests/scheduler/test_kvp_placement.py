from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.scheduler.kvp_placement import Placement, attention_seen


@given(st.integers(0, 3), st.integers(0, 60), st.integers(1, 20))
def test_attention_is_the_sum_of_what_each_position_sees(part: int, tokens: int, per_group: int) -> None:
    seen = sum(min(max(p + 1 - part * per_group, 0), per_group) for p in range(tokens))
    assert attention_seen(part, tokens, per_group) == seen


def test_the_least_loaded_group_that_has_the_pages() -> None:
    placement = Placement(3, 100)
    placement.add((0,), 0, 50)
    placement.add((1,), 0, 40)
    assert placement.pending == (1275, 820, 0)
    assert placement.choose((5,), (9, 9, 9)) == (2,)
    assert placement.choose((5,), (9, 9, 4)) == (1,)
    assert placement.choose((5,), (4, 4, 4)) is None
    # two parts: the full one goes to the least loaded group that has room for it
    assert placement.choose((8, 2), (9, 9, 3)) == (1, 2)
    assert placement.choose((8, 4), (9, 9, 3)) == (1, 0)
    assert placement.choose((8, 4), (9, 3, 3)) is None
    # 30 tokens are cached on the first group: what it saves outweighs what waits there
    assert placement.choose((5,), (9, 9, 9), [-1300, 0, 0]) == (0,)


def test_equally_loaded_groups_fill_evenly() -> None:
    assert Placement(2, 100).choose((1,), (3, 7)) == (1,)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=10))
def test_what_is_added_is_taken_off_again(cuts: list[tuple[int, int]]) -> None:
    placement = Placement(4, 70)
    for first, second in cuts:
        done, total = sorted((first, second))
        placement.add((2, 0, 3, 1), done, total)
        middle = (done + total) // 2
        placement.remove((2, 0, 3, 1), done, middle)
        placement.remove((2, 0, 3, 1), middle, total)
    assert placement.pending == (0, 0, 0, 0)


@pytest.mark.parametrize(("free", "expected"), [((5, 5), (0, 1)), ((5, 4), (0, 1)), ((4, 5), (1, 0)), ((4, 4), None)])
def test_a_request_over_two_groups_gets_what_there_is(free: tuple[int, int], expected: tuple[int, int] | None) -> None:
    assert Placement(2, 20).choose((5, 3), free) == expected
