"""The highest rate that a server keeps its promises at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

MOST_STEPS = 16  # doublings or halvings from the first rate: a factor of 65,536


@dataclass(frozen=True)
class Tried:
    """A rate in requests a second, and the share of its requests that met every objective; None if unknown."""

    rate: float
    attainment: float | None


@dataclass(frozen=True)
class Found:
    """What a search gave.

    Args:
        best: the highest rate that was good enough, None if none was.
        bad: the lowest rate above it that was not, None if none was tried.
        tried: all rates, in the order in which they were tried.
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
    """Find the highest rate with at least the wanted attainment, by steps of two and then by halving in logarithms.

    It takes attainment to fall with the rate; where noise makes it rise again, the answer is one of the borders.

    Args:
        measure: attainment at a rate; None ends the search.
        start: first rate, requests a second.
        wanted: attainment from which on a rate is good enough.
        precision: the search ends where the bad rate is at most this much of the good one above it (1.05 is 5 %).
        most: rates that are tried, at most.
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
