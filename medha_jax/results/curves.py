"""The numbers that plots draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from medha_jax.results.group import LENGTHS, length_class
from medha_jax.results.metrics import on_time
from medha_jax.results.records import RequestRecord
from medha_jax.results.run import Run
from medha_jax.results.spread import Interval
from medha_jax.results.summary import PROBE
from medha_jax.results.units import seconds

Metric = Callable[[RequestRecord], float | None]
POINTS = 500  # most points of a curve; more cannot be seen


def class_names(runs: Sequence[Run]) -> list[str]:
    """Classes of requests: their kinds, or, if there is only one kind, the lengths of their prompts."""
    kinds = list(dict.fromkeys(kind for run in runs for kind in run.kinds()))
    if len([kind for kind in kinds if kind != PROBE]) > 1:
        return kinds
    lengths = {name for run in runs for name in run.lengths()}
    return [*(name for name in LENGTHS if name in lengths), *(kind for kind in kinds if kind == PROBE)]


def classes(run: Run, name: str, of: Metric) -> np.ndarray:
    """A metric of the finished requests of one class, over all repeats."""
    by_length = name in LENGTHS
    found = [
        value
        for repeat in run.repeats
        for record in repeat.records
        if record.status == "ok" and name == (_length(record) if by_length else record.kind)
        if (value := of(record)) is not None
    ]
    return np.array(found, np.float64)


def _length(record: RequestRecord) -> str:
    return record.kind if record.kind == PROBE else length_class(record.prompt_tokens)


def cumulative(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the distribution function, at most POINTS: values, and the share of values up to each."""
    shares = np.arange(1, len(values) + 1) / len(values)
    kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), POINTS)).astype(int))
    ordered = np.sort(values)
    return np.concatenate([ordered[:1], ordered[kept]]), np.concatenate([[0.0], shares[kept]])


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high` for a logarithmic axis: at least three if high / low is four or more."""
    ticks: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
        if len(ticks) >= 3:
            break
    return ticks


def medians(run: Run, names: Sequence[str], of: Metric) -> list[tuple[str, str]]:
    """Every class that has values, with its median as text."""
    found = [(name, classes(run, name, of)) for name in names]
    return [(name, seconds(float(np.median(values)))) for name, values in found if len(values)]


def goodput_lines(runs: Sequence[Run]) -> tuple[dict[str, list[tuple[float, Interval]]], str]:
    """Points (rate, requests/s) of each series, by rate, and the name of their figure.

    The figure is goodput if every run has it, else throughput. With fewer than two rates there are no points.
    """
    rated = [run for run in runs if run.rate is not None and np.isfinite(run.rate)]
    key = "request_goodput" if all("request_goodput" in run.figures for run in rated) else "request_throughput"
    if len({run.rate for run in rated}) < 2:
        return {}, key
    lines: dict[str, list[tuple[float, Interval]]] = {}
    for run in sorted(rated, key=lambda run: run.rate or 0.0):
        lines.setdefault(run.series or run.name, []).append((run.rate or 0.0, run.figures[key]))
    return lines, key


def share_within(records: Sequence[RequestRecord]) -> str:
    """A sentence with the requests that were on time, without probes; empty if no request has an objective."""
    verdicts = [on_time(record) for record in records if record.kind != PROBE]
    judged = len(verdicts) - verdicts.count(None)
    return f"{verdicts.count(True):,} of {judged:,} requests were on time." if judged else ""
