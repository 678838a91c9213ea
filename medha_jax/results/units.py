"""Figures as people read them."""

from __future__ import annotations

from medha_jax.results.spread import Interval


def seconds(value: float) -> str:
    """Seconds in a unit that leaves three digits: `812 µs`, `50.3 ms`, `1.23 s`, `1,230 s`."""
    for limit, factor, unit in ((0.9995e-3, 1e6, "µs"), (0.9995, 1e3, "ms")):
        if 0 < abs(value) < limit:
            return f"{digits(value * factor)} {unit}"
    return f"{digits(value)} s"


def digits(value: float) -> str:
    """A number with three digits, or all of those before the point."""
    if value == 0:
        return "0"
    size = abs(value)
    places = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    return f"{value:,.{places}f}"


def duration(one: Interval) -> str:
    """Seconds, and their confidence interval."""
    return seconds(one.mean) + ("" if one.half is None else f" ± {seconds(one.half)}")


def number(one: Interval) -> str:
    """A number, and its confidence interval."""
    return digits(one.mean) + ("" if one.half is None else f" ± {digits(one.half)}")


def milliseconds(one: Interval) -> str:
    """A time that is given in milliseconds, and its confidence interval."""
    return duration(_thousandth(one))


def count(one: Interval) -> str:
    """A mean of counts, whole where it is."""
    return f"{one.mean:,.0f}" if float(one.mean).is_integer() else number(one)


def share(one: Interval) -> str:
    """A share in percent, and its confidence interval."""
    return f"{100 * one.mean:.1f} %" + ("" if one.half is None else f" ± {100 * one.half:.1f} %")


def _thousandth(one: Interval) -> Interval:
    return Interval(one.mean / 1000, None if one.half is None else one.half / 1000, one.count)
