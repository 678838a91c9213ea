from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.scheduler.feasible import on_time_together


def possible(work: np.ndarray, time: np.ndarray) -> bool:
    return bool(np.all(np.cumsum(work) <= time))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), max_size=8))
def test_no_choice_keeps_more_where_the_cost_is_the_work(drawn: list[tuple[int, int]]) -> None:
    work = np.array([own for own, _ in drawn], float)
    time = np.array([own + more for own, more in drawn], float)
    order = np.argsort(time, kind="stable")
    work, time = work[order], time[order]
    kept = on_time_together(work, time, work)
    assert possible(work[kept], time[kept])
    for more in range(int(kept.sum()) + 1, len(work) + 1):
        for chosen in combinations(range(len(work)), more):
            rows = list(chosen)
            assert not possible(work[rows], time[rows])


def test_the_dearest_is_set_aside() -> None:
    work, time = np.array([3.0, 4.0, 2.0]), np.array([4.0, 8.0, 8.5])
    np.testing.assert_array_equal(on_time_together(work, time, work), [True, False, True])
    np.testing.assert_array_equal(on_time_together(work, time, np.array([9.0, 4.0, 2.0])), [False, True, True])
