"""Tables that `medha-jax simulate` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medha_jax.cli.printing import print_line, print_table
from medha_jax.results import Table
from medha_jax.results.group import group_of
from medha_jax.results.metrics import waited
from medha_jax.simulate.summaries import percentiles, tpots

if TYPE_CHECKING:
    from medha_jax.config import SchedulerConfig
    from medha_jax.simulate.calibration import Calibration
    from medha_jax.simulate.deployments import Deployment
    from medha_jax.simulate.simulation import Outcome
    from medha_jax.simulate.summaries import ConvoySummary, PolicySummary

NOTHING = "-"


def print_convoy(rows: Sequence[ConvoySummary], deployment: Deployment, target: float) -> None:
    """Print how each policy handled a convoy; ratios are to the first row.

    `target` is the scheduler's target, in seconds per output token.
    """
    columns = (
        *("policy", "TTFT P50", "ratio", "TTFT P99", "TPOT P50 / most", "longest"),
        *("TTFT, long", "long done", "x alone", "alone + short", "ratio"),
    )
    cells = tuple(
        (
            row.policy,
            f"{row.short_ttft[0]:.3f} s",
            f"{rows[0].short_ttft[0] / row.short_ttft[0]:.1f}",
            f"{row.short_ttft[1]:.2f} s",
            f"{1000 * row.short_tpot[0]:.1f} / {1000 * row.short_tpot[1]:.1f} ms",
            f"{1000 * row.longest:.0f} ms",
            f"{row.long_ttft:.1f} s",
            NOTHING if row.long_finished is None else f"{row.long_finished:.1f} s",
            NOTHING if row.long_finished is None else f"{row.long_finished / row.long_alone:.2f}",
            f"{row.long_bound:.1f} s",
            NOTHING if row.long_finished is None else f"{row.long_finished / row.long_bound:.2f}",
        )
        for row in rows
    )
    print_table(Table("Simulated convoy: a long prompt, then a short one every second", columns, cells))
    print_line(
        f"Simulated on {deployment.name}: {deployment.about}. TTFT: arrival to first token. TPOT: (last - first) / "
        f"(tokens - 1); the target is {1000 * target:g} ms. They are those of the short requests, "
        "where nothing else is said. Longest: tick or slice. Alone: the long request with nobody else, in the largest "
        f"chunks ({rows[0].long_alone:.1f} s). Alone + short: the seconds that every request takes so, added up."
    )


def print_policies(
    rows: Sequence[PolicySummary], deployment: Deployment, workload: str, settings: SchedulerConfig
) -> None:
    """Print how each policy handled each load; `workload` is its description, `settings` have the deadlines."""
    columns = (
        *("load", "policy", "short on time", "long on time"),
        *("TTFT / alone P50", "P90", "P99", "of long P50", "P90", "P99"),
        *("done/s", "tokens/s", "longest wait", "left behind", "TPOT P50 / P99"),
    )
    cells = tuple(
        (
            f"{row.load:.2f}",
            row.policy,
            _share(row.on_time_short),
            _share(row.on_time_long),
            *_three(row.normalised, "{:.1f}"),
            *_three(row.normalised_long, "{:.1f}"),
            f"{row.throughput:.3f}",
            f"{row.tokens_per_second:,.0f}",
            f"{row.longest_wait:,.0f} s",
            "{} of {}".format(*row.left_behind),
            NOTHING if row.tpot is None else " / ".join(f"{1000 * value:.0f}" for value in row.tpot) + " ms",
        )
        for row in rows
    )
    ends = [number for number, row in enumerate(rows) if row.policy == rows[-1].policy]
    print_table(Table(f"Simulated: {workload}", columns, cells, words=2), ends=ends)
    print_line(
        f"Simulated on {deployment.name}: {deployment.about}. Alone: prefill alone, in chunks that leave decodes their "
        "TPOT. Load: seconds of such prefill that arrive in a second. On time: first token within "
        f"{settings.default_deadline_words}. Done/s: requests that finished while requests came. Left behind: long "
        "requests of the first third without a first token at the end. TPOT: (last - first) / (tokens - 1)."
    )


def print_traffic(outcome: Outcome, deployment: Deployment, settings: SchedulerConfig) -> None:
    """Print figures of the requests of each kind; `settings` have the deadlines."""
    records = outcome.records
    kinds = {kind: [one for one in records if one.kind == kind] for kind in ("short", "long", "probe")}
    cells = []
    for kind, ones in {**kinds, "all": records}.items():
        if ones:
            ttft = percentiles([waited(one) for one in ones], (50, 90, 99))
            tpot_ms = percentiles([1000 * each for each in tpots(ones)], (50, 90, 99))
            share = _share(group_of(ones).attainment)
            cells.append((f"{len(ones):,} {kind}", *_three(ttft, "{:.3f} s"), *_three(tpot_ms, "{:.1f} ms"), share))
    columns = "requests", "TTFT P50", "P90", "P99", "TPOT P50", "P90", "P99", "on time"
    print_table(Table(f"Simulated: {len(records):,} requests in {outcome.end:,.0f} s", columns, tuple(cells)))
    busy, tokens = outcome.totals.seconds / outcome.end, outcome.totals.tokens / outcome.end
    print_line(
        f"Simulated on {deployment.about}. {tokens:,.0f} tokens/s, busy for {100 * busy:.0f} % of the time. TTFT: "
        "arrival to first token. TPOT: (last - first) / (tokens - 1). On time: first token within "
        f"{settings.default_deadline_words}."
    )


def print_errors(measured: Calibration) -> None:
    """Print the errors of calibrated times, by kind of tick."""
    cells = tuple(
        (one.regime, f"{one.ticks:,}", f"{100 * one.median:.1f} %", f"{100 * one.p90:.1f} %") for one in measured.errors
    )
    title = "Measured ticks that the times were not fitted to: |predicted - measured| / measured"
    print_table(Table(title, ("ticks", "number", "median", "P90"), cells))


def _three(values: Sequence[float] | None, shown: str) -> list[str]:
    return [NOTHING] * 3 if values is None else [shown.format(value) for value in values]


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"
