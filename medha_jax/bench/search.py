"""Search for the highest rate at which a server meets its objectives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

MOST_STEPS = 16  # doublings or halvings from the first rate: a factor of 65,536


@dataclass(frozen=True)
class Tried:
    """A rate in requests per second, and the share of its requests that met every objective; None if unknown."""

    rate: float
    attainment: float | None


@dataclass(frozen=True)
class Found:
    """Result of a search.

    Args:
        best: the highest good rate; None if no rate was good.
        bad: the lowest bad rate above `best`; None if no rate was bad.
        tried: all rates in the order of the trials.
    """

    best: float | None
    bad: float | None
    tried: tuple[Tried, ...]


async def highest_rate(
    measure: Callable[[float], Awaitable[float | None]],
    start: float,
    wanted: float,
    precision: float,
    most: int,
) -> Found:
    """Find the highest rate with the wanted attainment: by factors of two, then by geometric bisection.

    The search assumes that attainment falls with the rate. If noise makes it rise again, the answer is one of the
    crossings.

    Args:
        measure: attainment at a rate; None ends the search.
        start: first rate, in requests per second.
        wanted: a rate with at least this attainment is good.
        precision: the search ends when bad rate / good rate is at most this (1.05 is 5 %).
        most: most rates to try.
    """
    tried: list[Tried] = []
    best = bad = None
    rate = start
    while len(tried) < most and (best is None or bad is None or bad > best * precision):
        attainment = await measure(rate)
        tried.append(Tried(rate, attainment))
        if attainment is None:
            break
        if attainment >= wanted:
            best = rate
        else:
            bad = rate
        if best is not None and bad is not None:
            rate = (best * bad) ** 0.5
        elif len(tried) > MOST_STEPS:
            break
        else:
            rate = rate * 2 if best is not None else rate / 2
    return Found(best, bad, tuple(tried))
