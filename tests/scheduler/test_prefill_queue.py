from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.scheduler.policies.base import Stateless
from medha_jax.scheduler.policies.formulas import fcfs, srtf
from medha_jax.scheduler.prefill_queue import FIRST_ROWS, Backlog
from medha_jax.scheduler.request import RequestState, SchedulerRequest


def state(number: int, arrival: float, work: float) -> RequestState:
    return RequestState(number, SchedulerRequest((0,), 1, arrival), arrival + 1, 0.05, False, 1, work, work)


rows = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=40)


@given(rows)
def test_order_is_that_of_sorting_with_ties_by_arrival_then_number(drawn: list[tuple[int, int, bool]]) -> None:
    backlog, kept = Backlog(), []
    for number, (arrival, work, stays) in enumerate(drawn):
        one = state(number, float(arrival), float(work))
        backlog.add(one)
        if stays:
            kept.append(one)
        else:
            backlog.remove(one)
    expected = sorted(kept, key=lambda s: (s.remaining, s.request.arrival_s, s.number))
    assert [one for one, _ in backlog.order(Stateless(srtf), 0.0)] == expected
    assert [one for one, _ in backlog.order(Stateless(fcfs), 0.0)] == list(backlog)


def test_thousands_are_ordered_lazily_and_completely() -> None:
    backlog = Backlog()
    rng = np.random.default_rng(0)
    states = [state(n, 0.0, float(rng.integers(0, 50))) for n in range(10 * FIRST_ROWS)]
    for one in states:
        backlog.add(one)
    expected = sorted(states, key=lambda s: (s.remaining, s.number))
    assert [one for one, _ in backlog.order(Stateless(srtf), 0.0)] == expected
    for one in states[::7]:
        one.note_tick(1, one.remaining)
        backlog.note_tick(one)
    order = backlog.order(Stateless(srtf), 0.0)
    seen = []
    for one, _ in order:
        seen.append(one)
        if len(seen) == 5:
            order.only_admitted()
    assert seen == expected[:5] + [one for one in expected[5:] if one.number % 7 == 0]


def test_a_planned_request_moves_back_and_the_longest_unplanned_comes_first() -> None:
    backlog = Backlog()
    states = [state(n, 0.0, 1.0) for n in range(4)]
    for one in states:
        backlog.add(one)
    for tick, number in enumerate((2, 0, 1)):
        states[number].note_tick(tick, 1.0 - 0.1 * number)
        backlog.note_tick(states[number])
    assert [one.number for one in backlog.longest_unplanned()] == [2, 0, 1], "the last one is not admitted"
    assert [one.number for one, _ in backlog.order(Stateless(srtf), 0.0)] == [2, 1, 0, 3]
