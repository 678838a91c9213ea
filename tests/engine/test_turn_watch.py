from __future__ import annotations

import math

import pytest

from medha_jax.engine.turn_watch import TurnWatch


def looked(watch: TurnWatch, seconds: float, step: float, limit: float = 10.0, predicted: float = 0.0) -> float:
    """Seconds of looking, from the first look on, until a turn is overdue; infinite if it never is."""
    for count in range(round(seconds / step)):
        if watch.overdue(count * step, limit, predicted) is not None:
            return count * step
    return math.inf


@pytest.mark.parametrize(
    ("predicted", "limit"), [(0.0, 10.0), (0.5, 10.0), (1.0, 20.0), (math.inf, 10.0), (math.nan, 10.0)]
)
def test_a_turn_is_overdue_after_its_limit(predicted: float, limit: float) -> None:
    watch = TurnWatch()
    watch.begin()
    assert limit < looked(watch, 100, 0.25, predicted=predicted) <= limit + 0.5
    assert watch.overdue(200, 10.0, predicted) == limit


def test_an_engine_that_rests_or_takes_turns_is_not_overdue() -> None:
    watch = TurnWatch()
    assert looked(watch, 100, 0.25) == math.inf
    for turn in range(100):
        watch.begin()
        assert watch.overdue(1000.0 + turn, 10.0, 0.0) is None
        assert watch.overdue(1009.0 + turn, 10.0, 0.0) is None
        watch.end()


def test_seconds_in_which_the_whole_process_stood_still_count_little() -> None:
    watch = TurnWatch()
    watch.begin()
    assert watch.overdue(0.0, 10.0, 0.0) is None
    assert watch.overdue(3600.0, 10.0, 0.0) is None
    assert watch.overdue(3600.25, 10.0, 0.0) is None
