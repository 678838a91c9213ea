from __future__ import annotations

import pytest

from medha_jax.results import Interval
from medha_jax.results.units import count, digits, duration, milliseconds, number, seconds, share


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0 s"),
        (0.0000123, "12.3 µs"),
        (0.000812, "812 µs"),
        (0.0009999, "1.00 ms"),
        (0.0503, "50.3 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (1.234, "1.23 s"),
        (68.25, "68.2 s"),
        (1234.5, "1,234 s"),
        (-0.002, "-2.00 ms"),
    ],
)
def test_seconds_keep_three_digits(value: float, words: str) -> None:
    assert seconds(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.01234, "0.012"), (9.994, "9.99"), (9.996, "10.0"), (99.96, "100"), (12345.6, "12,346")],
)
def test_numbers_keep_three_digits(value: float, words: str) -> None:
    assert digits(value) == words


def test_intervals_are_in_the_unit_of_the_mean() -> None:
    assert duration(Interval(68.25, 0.984, 3)) == "68.2 ± 0.98 s"
    assert milliseconds(Interval(427.0, 24.16, 3)) == "427 ± 24 ms"
    assert milliseconds(Interval(1500.0, 3.2, 3)) == "1.50 ± 0.003 s"
    assert number(Interval(2.3, 0.0644, 3)) == "2.30 ± 0.064"
    assert share(Interval(0.515, 0.261, 3)) == "51.5 ± 26 %"


def test_a_single_value_has_no_interval_and_equal_values_show_none() -> None:
    for half in (None, 0.0):
        assert duration(Interval(0.05, half, 1)) == "50.0 ms"
        assert share(Interval(1.0, half, 1)) == "100.0 %"
        assert count(Interval(12_000.0, half, 1)) == "12,000"
    assert count(Interval(2.5, 1.2, 2)) == "2.50 ± 1.2"
