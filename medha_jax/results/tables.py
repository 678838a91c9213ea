"""Runs side by side, as tables of text for the terminal and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from medha_jax.results.metrics import FORMULAS
from medha_jax.results.run import Run, compare_convoys, distinct
from medha_jax.results.spread import Interval
from medha_jax.results.summary import PROBE
from medha_jax.results.units import count, digits, duration, milliseconds, number, share

NOTHING = "–"
Cell = Callable[[Interval], str]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        title: above the table.
        columns: headings.
        rows: one cell per column.
        note: below the table; explains its words.
        words: number of left columns that hold words; the others hold numbers.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    words: int = 1


def run_tables(runs: Sequence[Run]) -> list[Table]:
    """The tables of runs, side by side; ratios are to the first."""
    runs = distinct(runs)
    tables = [*_convoy(runs), _overview(runs), _times("Times by kind", runs, Run.kinds, Run.of_kind)]
    if any(len(run.lengths()) > len([kind for kind in run.kinds() if kind != PROBE]) for run in runs):
        tables.append(_times("Times by tokens of the prompt", runs, Run.lengths, Run.of_length))
    return [*tables, *_errors(runs)]


def _cell(figures: Mapping[str, Interval], name: str, shown: Cell) -> str:
    return shown(figures[name]) if name in figures else NOTHING


_OVERVIEW: tuple[tuple[str, str, Cell], ...] = (
    ("requests", "requests", count),
    ("finished", "completed", count),
    ("failed", "failed", count),
    ("cancelled by the client", "cancelled", count),
    ("unfinished at the end", "unfinished", count),
    ("duration", "duration", duration),
    ("requests/s", "request_throughput", number),
    ("output tokens/s", "output_throughput", number),
    ("all tokens/s", "total_token_throughput", number),
    ("goodput, requests/s", "request_goodput", number),
    ("attainment", "attainment", share),
    ("TTFT mean", "mean_ttft_ms", milliseconds),
    ("TTFT P50", "median_ttft_ms", milliseconds),
    ("TTFT P99", "p99_ttft_ms", milliseconds),
    ("TPOT mean", "mean_tpot_ms", milliseconds),
    ("TPOT P50", "median_tpot_ms", milliseconds),
    ("TPOT P99", "p99_tpot_ms", milliseconds),
    ("longest wait for a first output", "longest_wait_s", duration),
    ("most requests at once", "max_concurrent_requests", count),
    ("lateness of the client, P50", "p50_lateness_ms", milliseconds),
    ("lateness of the client, P99", "p99_lateness_ms", milliseconds),
    ("… allowed", "allowed_lateness_ms", milliseconds),
)


def _overview(runs: Sequence[Run]) -> Table:
    """One column per run, without the rows that no run has."""
    rows = []
    for label, name, shown in _OVERVIEW:
        cells = [_cell(run.figures, name, shown) for run in runs]
        if set(cells) != {NOTHING}:
            rows.append((label, *cells))
    words = ["requests/s and tokens/s: " + FORMULAS["throughput"]]
    words += [f"{name}: {FORMULAS[name]}" for name in ("goodput", "attainment", "on time", "TTFT", "TPOT", "lateness")]
    if any(PROBE in run.kinds() for run in runs):
        words.append("probes are left out")
    if any(len(run.repeats) > 1 for run in runs):
        words.append("±: 95 % confidence interval of the mean over repeats (Student's t)")
    return Table("Overview", ("", *(run.name for run in runs)), tuple(rows), "; ".join(words) + ".")


def _times(
    title: str,
    runs: Sequence[Run],
    names: Callable[[Run], list[str]],
    figures: Callable[[Run, str], Mapping[str, Interval]],
) -> Table:
    """One row per class and run."""
    shown: tuple[tuple[str, str, Cell], ...] = (
        ("done", "completed", count),
        ("TTFT P50", "median_ttft_ms", milliseconds),
        ("P90", "p90_ttft_ms", milliseconds),
        ("P99", "p99_ttft_ms", milliseconds),
        ("/ alone", "median_normalised_ttft", number),
        ("TPOT P50", "median_tpot_ms", milliseconds),
        ("P99", "p99_tpot_ms", milliseconds),
        ("ITL P99", "p99_itl_ms", milliseconds),
        ("E2EL P50", "median_e2el_ms", milliseconds),
        ("on time", "attainment", share),
    )
    classes = list(dict.fromkeys(name for run in runs for name in names(run)))
    rows = []
    for name in _in_order(classes, [names(run) for run in runs]):
        for run in runs:
            if name in names(run):
                of = figures(run, name)
                plain = {key: Interval(one.mean, None, one.count) for key, one in of.items()}
                rows.append((name, run.name, *(_cell(plain, key, cell) for _, key, cell in shown)))
    words = 2 if len(runs) > 1 else 1
    heads = ("", "run", *(head for head, _, _ in shown))
    kept = [i for i in range(len(heads)) if i < words or (i > 1 and any(row[i] != NOTHING for row in rows))]
    note = "; ".join(f"{name}: {FORMULAS[name]}" for name in ("TTFT", "TPOT", "ITL", "E2EL"))
    note += f"; / alone: median of {FORMULAS['normalised TTFT']}." if "/ alone" in [heads[i] for i in kept] else "."
    if any(len(run.repeats) > 1 for run in runs):
        note += " Means over the repeats."
    return Table(title, tuple(heads[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in rows), note, words)


def _in_order(names: Sequence[str], orders: Sequence[Sequence[str]]) -> list[str]:
    """Names by their largest place in any of the orders that have them."""
    return sorted(names, key=lambda name: max(order.index(name) for order in orders if name in order))


def _convoy(runs: Sequence[Run]) -> list[Table]:
    """Waits of short requests beside long ones, for several runs."""
    if not compare_convoys(runs):
        return []
    rows = []
    first = runs[0].of_kind("short").get("median_ttft_ms")
    for run in runs:
        short, long = run.of_kind("short"), run.of_kind("long")
        median = short.get("median_ttft_ms")
        ratio = f"{digits(first.mean / median.mean)}x" if first and median and median.mean else NOTHING
        rows.append(
            (
                run.name,
                *(_cell(short, f"{part}_ttft_ms", milliseconds) for part in ("median", "p90", "p99")),
                ratio,
                *(_cell(short, f"{part}_tpot_ms", milliseconds) for part in ("median", "p90", "p99")),
                _cell(long, "median_ttft_ms", milliseconds),
                _cell(long, "median_e2el_ms", milliseconds),
                NOTHING if run.long_over_best is None else f"{run.long_over_best:.2f}",
                _cell(run.figures, "output_throughput", number),
                _cell(run.figures, "request_goodput", number),
            )
        )
    waits = "short TTFT P50", "P90", "P99", "ratio", "short TPOT P50", "P90", "P99"
    heads = ("run", *waits, "long TTFT", "long E2EL", "x best", "output tokens/s", "goodput, requests/s")
    note = f"ratio: median short TTFT of {runs[0].name} / that of the run. TTFT: {FORMULAS['TTFT']}; TPOT: "
    note += f"{FORMULAS['TPOT']}; goodput: {FORMULAS['goodput']}; of long requests the median. x best: long E2EL / the "
    note += "same prompt with nobody else in the largest chunks."
    return [Table("Short requests beside long ones", heads, tuple(rows), note)]


def _errors(runs: Sequence[Run]) -> list[Table]:
    """Errors and their counts over all repeats."""
    rows = []
    for run in runs:
        total = sum((Counter(summary.errors) for summary in run.summaries), Counter())
        rows += [(run.name, message, f"{times:,}") for message, times in total.most_common()]
    return [Table("Failures", ("run", "error", "requests"), tuple(rows), words=2)] if rows else []
