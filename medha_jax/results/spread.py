"""Statistics: percentiles of requests, confidence intervals of repeats."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Student's t at 97.5 % for 1 to 30 degrees of freedom, the usual printed table.
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_Z_975 = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Spread:
    """Distribution of values. Percentiles are interpolated; `std` divides by n; `most` is the maximum."""

    count: int
    mean: float
    median: float
    std: float
    p90: float
    p95: float
    p99: float
    most: float


def spread(values: Sequence[float] | np.ndarray) -> Spread | None:
    """The spread of values; None without values."""
    if not len(values):
        return None
    array = np.asarray(values, np.float64)
    median, p90, p95, p99, most = np.percentile(array, (50, 90, 95, 99, 100)).tolist()
    return Spread(len(array), float(array.mean()), median, float(array.std()), p90, p95, p99, most)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval.

    Args:
        mean: of the values.
        half: half of the interval's width; None for a single value.
        count: number of values.
    """

    mean: float
    half: float | None
    count: int

    @property
    def low(self) -> float | None:
        """Lower end."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """Upper end."""
        return None if self.half is None else self.mean + self.half


def interval(values: Sequence[float]) -> Interval:
    """The mean of a figure over repeats, with Student's t interval at 95 %.

    t instead of a bootstrap: with three to ten repeats, resampling has too few values and gives intervals that are too
    narrow. t allows for the unknown variance.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("an interval of no values")
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Interval(mean, None, 1)
    return Interval(mean, t_975(count - 1) * statistics.stdev(values) / math.sqrt(count), count)


def t_975(freedom: int) -> float:
    """Student's t at 97.5 %. Above 30 degrees of freedom: two terms of its expansion about the normal quantile."""
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z = _Z_975
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
