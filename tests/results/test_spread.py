from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.results import Interval, Spread, interval, spread
from medha_jax.results.spread import t_975


def test_percentiles_lie_between_the_values_by_hand() -> None:
    found = spread([3.0, 1.0, 2.0, 5.0, 4.0])
    # place p (n - 1) of the sorted values: 3.6, 3.8, 3.96
    assert found == Spread(5, 3.0, 3.0, pytest.approx(math.sqrt(2)), pytest.approx(4.6), pytest.approx(4.8), 4.96, 5.0)
    assert spread([]) is None
    assert spread([7.0]) == Spread(1, 7.0, 7.0, 0.0, 7.0, 7.0, 7.0, 7.0)


def cdf(t: float, freedom: int) -> float:
    """Student's distribution function, by Simpson's rule on its density."""
    x = np.linspace(0, t, 20_001)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    return 0.5 + float(density[0] + density[-1] + 4 * density[1::2].sum() + 2 * density[2:-1:2].sum()) * t / 20_000 / 3


@pytest.mark.parametrize("freedom", [*range(1, 41), 100, 1000])
def test_the_quantiles_of_students_t_are_right(freedom: int) -> None:
    assert cdf(t_975(freedom), freedom) == pytest.approx(0.975, abs=3e-5)


def test_intervals_by_hand() -> None:
    # mean 4, s = 2, t(2) = 4.303: 4 ± 4.303 * 2 / √3
    found = interval([2.0, 4.0, 6.0])
    assert (found.mean, found.count) == (4.0, 3)
    assert found.half == pytest.approx(4.9687, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((4 - 4.9687, 4 + 4.9687), abs=1e-4)
    assert interval([5.0]) == Interval(5.0, None, 1)
    assert (interval([5.0]).low, interval([5.0]).high) == (None, None)
    with pytest.raises(ValueError, match="no values"):
        interval([])


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    draws = np.random.default_rng(0).normal(10, 3, (4000, 4))
    covered = 0
    for values in draws.tolist():
        one = interval(values)
        covered += one.low is not None and one.high is not None and one.low <= 10 <= one.high
    assert covered / 4000 == pytest.approx(0.95, abs=0.012)
    assert t_975(10**6) == pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-5)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_percentiles_are_ordered_and_within(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert min(values) <= found.median <= found.p90 <= found.p95 <= found.p99 <= found.most == max(values)
