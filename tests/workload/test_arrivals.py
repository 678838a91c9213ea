"""Arrivals against what their distributions say, by the Kolmogorov-Smirnov test; seeds are fixed, so no run differs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from medha_jax.workload import WorkloadConfig, WorkloadError
from medha_jax.workload.arrivals import due_times

COUNT = 5000
CRITICAL = 1.628  # of √n times the greatest distance, at 1 %


def times(seed: int = 0, burstiness: float = 1.0, **settings: Any) -> np.ndarray:
    return due_times(WorkloadConfig(**settings), burstiness, np.random.default_rng(seed))


def distance(values: np.ndarray, cdf: Callable[[np.ndarray], np.ndarray]) -> float:
    """√n times the greatest distance between the empirical distribution of values and a continuous one."""
    expected, count = cdf(np.sort(values)), len(values)
    steps = np.arange(count + 1) / count
    return float(math.sqrt(count) * max((steps[1:] - expected).max(), (expected - steps[:-1]).max()))


def exponential(mean: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: 1 - np.exp(-x / mean)


def gamma(shape: float, mean: float) -> Callable[[np.ndarray], np.ndarray]:
    """The regularised lower incomplete gamma function, by its power series."""

    def cdf(x: np.ndarray) -> np.ndarray:
        z = x * shape / mean
        term = np.ones_like(z) / math.gamma(shape + 1)
        total = term.copy()
        for n in range(1, 400):
            term = term * z / (shape + n)
            total += term
        return np.asarray(total * z**shape * np.exp(-z))

    return cdf


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rate", [0.05, 200.0])
def test_poisson_gaps_are_exponential(rate: float, seed: int) -> None:
    gaps = np.diff(times(seed, process="poisson", rate=rate, num_requests=COUNT), prepend=0)
    assert distance(gaps, exponential(1 / rate)) < CRITICAL
    assert distance(gaps, exponential(1.1 / rate)) > CRITICAL  # the test can tell
    # and independent of the gap before
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 3 / math.sqrt(COUNT)


# Below 0.2 a good part of the gaps is too small for the last bit of the times.
@pytest.mark.parametrize("shape", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_shape_and_its_variation(shape: float) -> None:
    gaps = np.diff(times(3, shape, process="gamma", rate=2.0, num_requests=COUNT), prepend=0)
    assert distance(gaps, gamma(shape, 0.5)) < CRITICAL
    four_errors = 4 * math.sqrt((6 / shape + 2) / (4 * COUNT))  # from the kurtosis of a gamma distribution, 6 / shape
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(shape), rel=four_errors)
    if shape != 1:
        assert distance(gaps, exponential(0.5)) > CRITICAL


@pytest.mark.parametrize("ends", [(1.0, 9.0), (9.0, 1.0), (4.0, 4.0)])
def test_a_ramp_is_poisson_in_its_own_time(ends: tuple[float, float]) -> None:
    (a, b), seconds = ends, 1000.0
    due = times(4, process="ramp", rate=a, rate_end=b, duration=seconds)
    assert len(due) == pytest.approx(seconds * (a + b) / 2, rel=0.05)
    expected = a * due + (b - a) * due**2 / (2 * seconds)  # arrivals that the rate's integral says
    assert distance(np.diff(expected, prepend=0), exponential(1.0)) < CRITICAL
    assert due[0] > 0
    assert due[-1] < seconds


def test_a_ramp_over_a_number_of_requests_reaches_its_end_rate() -> None:
    due = times(5, process="ramp", rate=1.0, rate_end=19.0, num_requests=10_000)
    assert due[-1] == pytest.approx(1000, rel=0.05)
    assert np.sum(due < 500) == pytest.approx(10_000 * (1 * 500 + 18 * 500**2 / 2000) / 10_000, rel=0.05)
    assert (np.diff(due) > 0).all()


def test_constant_steps_are_even_and_end_before_the_duration() -> None:
    assert times(process="constant", rate=4.0, duration=1.0).tolist() == [0, 0.25, 0.5, 0.75]
    assert times(process="constant", rate=4.0, duration=1.01).tolist() == [0, 0.25, 0.5, 0.75, 1.0]
    assert times(process="constant", rate=4.0, duration=100.0, num_requests=2).tolist() == [0, 0.25]


@pytest.mark.parametrize("process", ["poisson", "gamma", "constant"])
def test_a_longer_run_begins_like_a_shorter_one(process: str) -> None:
    long = times(7, 0.5, process=process, rate=3.0, num_requests=9000)
    assert times(7, 0.5, process=process, rate=3.0, num_requests=10).tolist() == long[:10].tolist()
    within = times(7, 0.5, process=process, rate=3.0, duration=100.0)
    assert within.tolist() == long[long < 100].tolist()


def test_all_at_once_is_all_at_zero() -> None:
    assert times(rate=math.inf, num_requests=3).tolist() == [0, 0, 0]


def test_nothing_due_is_an_error() -> None:
    with pytest.raises(WorkloadError, match="no request is due within 0.01 s at 0.001 requests/s"):
        times(rate=0.001, duration=0.01)
