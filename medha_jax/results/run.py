"""Runs: one configuration, measured once or several times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from medha_jax.results.group import Figures
from medha_jax.results.records import RequestRecord
from medha_jax.results.spread import Interval, interval
from medha_jax.results.summary import Summary, summarise

JSON = Any  # null, bool, int, float, str, list and dict of these


class ResultsError(ValueError):
    """A directory does not hold results."""


@dataclass(frozen=True)
class Repeat:
    """One measurement.

    Args:
        records: of every request, without the warm-up.
        window: seconds of the run to evaluate (see `summarise`); None for all.
    """

    records: tuple[RequestRecord, ...]
    window: tuple[float, float] | None = None

    @cached_property
    def summary(self) -> Summary:
        """Figures of its requests."""
        return summarise(self.records, self.window)


@dataclass(frozen=True)
class Run:
    """One configuration, measured once or several times.

    Args:
        name: heading of its column.
        repeats: at least one.
        config: the settings to show, by sections.
        stamp: result of `stamp`.
        rate: offered requests per second; runs with different rates are drawn over it.
        series: line of the plot over rates; None for the name.
    """

    name: str
    repeats: tuple[Repeat, ...]
    config: Mapping[str, JSON]
    stamp: Mapping[str, JSON]
    rate: float | None = None
    series: str | None = None

    def __post_init__(self) -> None:
        if not self.repeats:
            raise ResultsError(f"run {self.name!r} has no repeats; it needs at least one")

    @property
    def summaries(self) -> tuple[Summary, ...]:
        """The summary of every repeat."""
        return tuple(repeat.summary for repeat in self.repeats)

    @property
    def figures(self) -> dict[str, Interval]:
        """Every number of `Summary.flat`, over the repeats that have it."""
        return across(summary.flat() for summary in self.summaries)

    def kinds(self) -> list[str]:
        """Kinds of requests, in the order of the summaries."""
        return list(dict.fromkeys(kind for summary in self.summaries for kind in summary.kinds))

    def of_kind(self, kind: str) -> dict[str, Interval]:
        """Every number of the group of a kind, over the repeats that have it."""
        return across(summary.kinds[kind].flat() for summary in self.summaries if kind in summary.kinds)

    @property
    def long_over_best(self) -> float | None:
        """A convoy's long requests, mean of the medians of the repeats: seconds / those of one at its best.

        None if that is not known.
        """
        alone, whole = self.config.get("alone"), self.of_kind("long").get("median_e2el_ms")
        best = alone.get("best_s") if isinstance(alone, Mapping) else None
        return whole.mean / 1000 / best if whole is not None and isinstance(best, float) else None

    def lengths(self) -> list[str]:
        """Classes of prompt lengths, shortest first."""
        return list(dict.fromkeys(name for summary in self.summaries for name in summary.lengths))

    def of_length(self, name: str) -> dict[str, Interval]:
        """Every number of the group of a length, over the repeats that have it."""
        return across(summary.lengths[name].flat() for summary in self.summaries if name in summary.lengths)


def across(figures: Iterable[Figures]) -> dict[str, Interval]:
    """Means and intervals of figures; only numbers count."""
    values: dict[str, list[float]] = {}
    for flat in figures:
        for name, value in flat.items():
            if value is not None and not isinstance(value, bool):
                values.setdefault(name, []).append(value)
    return {name: interval(found) for name, found in values.items()}


def compare_convoys(runs: Sequence[Run]) -> bool:
    """Whether there are several runs, all with short and long requests."""
    return len(runs) > 1 and all({"short", "long"} <= set(run.kinds()) for run in runs)


def distinct(runs: Sequence[Run]) -> list[Run]:
    """The same runs; repeated names get a number."""
    found: list[Run] = []
    for run in runs:
        taken, name, number = {one.name for one in found}, run.name, 1
        while name in taken:
            number += 1
            name = f"{run.name} ({number})"
        found.append(run if name == run.name else replace(run, name=name, series=run.series or run.name))
    return found
