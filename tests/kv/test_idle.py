"""Idle pages come out in the order of their last use, whatever was added, used again and taken out."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.kv.idle import IdlePages

some = st.lists(st.integers(0, 19), unique=True, max_size=12)
moves = st.lists(st.tuples(st.sampled_from(["add", "discard", "pop"]), some), max_size=40)


@given(moves)
def test_it_is_a_list_in_the_order_of_use(made: list[tuple[str, list[int]]]) -> None:
    idle, expected = IdlePages(20), list[int]()
    for what, pages in made:
        if what == "pop":
            count = min(len(pages), len(expected))
            assert idle.pop(count) == expected[:count]
            expected = expected[count:]
        else:
            expected = [page for page in expected if page not in pages]
            if what == "add":
                idle.add(np.array(pages, np.int64))
                expected += pages
            else:
                idle.discard(np.array(pages, np.int64))
        assert len(idle) == len(expected)
        assert idle.among(np.arange(20)).tolist() == [page in expected for page in range(20)]
    assert idle.pop(len(expected)) == expected


def test_it_forgets_what_was_used_again() -> None:
    idle = IdlePages(1000)
    for _ in range(100):  # a request takes all of these pages but one, again and again
        idle.add(np.arange(1000))
        idle.discard(np.arange(999))
    assert sum(len(run.pages) for run in idle._runs.values()) == 1 == len(idle)
