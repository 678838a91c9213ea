"""The speed that RED counts on, as it measures it."""

from __future__ import annotations

import numpy as np
import pytest

from medha_jax.scheduler.policies.red import LEAST_SPEED, MEMORY_S, SPEED_MARGIN, MeasuredSpeed

ONE = np.array([1.0])


def measured(rate: float, seconds: int, numbers: np.ndarray = ONE) -> MeasuredSpeed:
    speed = MeasuredSpeed()
    speed.passed(numbers, 0.0)
    for second in range(seconds):
        speed.worked(rate)
        speed.passed(numbers, second + 1.0)
    return speed


def test_it_follows_the_work_that_is_done() -> None:
    assert MeasuredSpeed().expected == SPEED_MARGIN
    assert measured(0.6, 200).expected == pytest.approx(0.6 * SPEED_MARGIN, rel=1e-3)
    assert measured(1.5, 200).expected == 1, "never more than predicted"
    assert measured(0.0, 200).expected == LEAST_SPEED


def test_recent_seconds_count_more() -> None:
    speed = measured(0.6, 200)
    for second in range(200, 200 + int(MEMORY_S)):
        speed.worked(0.8)
        speed.passed(ONE, second + 1.0)
    assert speed.expected / SPEED_MARGIN == pytest.approx(0.8 - 0.2 * np.exp(-1), rel=1e-2)


def test_time_without_prompts_does_not_count() -> None:
    speed = measured(0.6, 200)
    before = speed.expected
    speed.worked(0.3)
    assert speed.passed(np.array([7.0]), 1000.0) == 0, "request 1 has gone, and who knows when"
    assert speed.expected == before
    assert speed.passed(np.array([7.0]), 1001.0) == 1
