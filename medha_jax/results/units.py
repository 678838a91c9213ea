"""Numbers as readable text."""

from __future__ import annotations

from medha_jax.results.spread import Interval


def seconds(value: float) -> str:
    """Seconds with three digits: `812 µs`, `50.3 ms`, `1.23 s`, `1,230 s`."""
    factor, unit = _unit(value)
    return f"{digits(value * factor)} {unit}"


def _unit(value: float) -> tuple[float, str]:
    """Units per second, and the unit's name."""
    for limit, factor, unit in ((0.9995e-3, 1e6, "µs"), (0.9995, 1e3, "ms")):
        if 0 < abs(value) < limit:
            return factor, unit
    return 1.0, "s"


def digits(value: float) -> str:
    """A number with three digits, or with all digits before the point."""
    if value == 0:
        return "0"
    size = abs(value)
    places = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    return f"{value:,.{places}f}"


def duration(one: Interval) -> str:
    """Seconds with half their confidence interval in the same unit: `50.3 ± 1.2 ms`."""
    factor, unit = _unit(one.mean)
    return f"{digits(one.mean * factor)}{_half(one, factor)} {unit}"


def number(one: Interval) -> str:
    """A number with half its confidence interval."""
    return digits(one.mean) + _half(one, 1)


def milliseconds(one: Interval) -> str:
    """A time in milliseconds with half its confidence interval."""
    return duration(Interval(one.mean / 1000, None if one.half is None else one.half / 1000, one.count))


def count(one: Interval) -> str:
    """A mean of counts; whole means without decimals."""
    return f"{one.mean:,.0f}" if float(one.mean).is_integer() else number(one)


def share(one: Interval) -> str:
    """A share in percent with half its confidence interval."""
    return f"{100 * one.mean:.1f}{_half(one, 100)} %"


def _half(one: Interval, factor: float) -> str:
    """Half an interval with two digits, or with all digits before the point; empty for 0 or None."""
    if not one.half:
        return ""
    value = one.half * factor
    return f" ± {value:,.{0 if value >= 9.95 else 1 if value >= 0.995 else 2 if value >= 0.0995 else 3}f}"
