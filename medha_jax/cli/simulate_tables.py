"""The tables that `medha-jax simulate` prints for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from medha_jax.simulate.report import on_time, percentiles

if TYPE_CHECKING:
    from medha_jax.simulate.calibration import Calibration
    from medha_jax.simulate.deployments import Deployment
    from medha_jax.simulate.report import ConvoySummary, Summary
    from medha_jax.simulate.run import Outcome

WIDTH = 140  # of output that is no terminal


def print_convoy(rows: Sequence[ConvoySummary], deployment: Deployment, target: float) -> None:
    """Print what each policy made of a convoy; the first row is what the ratios are to.

    Args:
        rows: one a policy.
        deployment: that was simulated.
        target: seconds per output token that the scheduler aimed at.
    """
    table = Table(title="Simulated convoy: a long prompt, then a short one every second", title_justify="left")
    table.add_column("policy")
    for name in (
        "TTFT P50",
        "ratio",
        "TTFT P99",
        "TPOT P50 / most",
        "TTFT, long",
        "long done",
        "alone + short",
        "ratio",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        done = "-" if row.long_finished is None else f"{row.long_finished:.1f} s"
        share = "-" if row.long_finished is None else f"{row.long_finished / row.long_bound:.2f}"
        table.add_row(
            row.policy,
            f"{row.short_ttft[0]:.3f} s",
            f"{rows[0].short_ttft[0] / row.short_ttft[0]:.1f}",
            f"{row.short_ttft[1]:.2f} s",
            f"{1000 * row.short_tpot[0]:.1f} / {1000 * row.short_tpot[1]:.1f} ms",
            f"{row.long_ttft:.1f} s",
            done,
            f"{row.long_bound:.1f} s",
            share,
        )
    console = wide_console()
    console.print(table)
    console.print(
        f"Simulated on {deployment.name}: {deployment.about}. TTFT: arrival to first token. TPOT: (last - first) / "
        f"(tokens - 1); the target is {1000 * target:g} ms. They are those of the short requests, "
        "where nothing else is said. Alone + short: the seconds that every request takes alone, added up.",
        soft_wrap=True,
    )


def print_policies(rows: Sequence[Summary], deployment: Deployment, workload: str) -> None:
    """Print what each policy made of a load.

    Args:
        rows: one a load and policy.
        deployment: that was simulated.
        workload: in words.
    """
    table = Table(title=f"Simulated: {workload}", title_justify="left")
    table.add_column("load", justify="right")
    table.add_column("policy")
    for name in (
        "short on time",
        "long on time",
        "TTFT / alone P50",
        "P90",
        "P99",
        "of long P50",
        "P90",
        "P99",
        "done/s",
        "tokens/s",
        "longest wait",
        "left behind",
        "TPOT P50 / P99",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        normal, long, tpot = row.normalised, row.normalised_long, row.tpot
        table.add_row(
            f"{row.load:.2f}",
            row.policy,
            _share(row.on_time_short),
            _share(row.on_time_long),
            *(("-",) * 3 if normal is None else [f"{value:.1f}" for value in normal]),
            *(("-",) * 3 if long is None else [f"{value:.1f}" for value in long]),
            f"{row.throughput:.3f}",
            f"{row.tokens_per_second:,.0f}",
            f"{row.longest_wait:,.0f} s",
            "{} of {}".format(*row.left_behind),
            "-" if tpot is None else " / ".join(f"{1000 * value:.0f}" for value in tpot) + " ms",
            end_section=row.policy == rows[-1].policy,
        )
    console = wide_console()
    console.print(table)
    console.print(
        f"Simulated on {deployment.name}: {deployment.about}. Alone: prefill alone, in chunks that leave decodes their "
        "TPOT. Load: seconds of such prefill that arrive in a second. On time: first token within max(1.5 x alone, "
        "0.5 s). Done/s: requests that finished while requests came. Left behind: long requests of the first third "
        "without a first token at the end. TPOT: (last - first) / (tokens - 1).",
        soft_wrap=True,
    )


def print_traffic(outcome: Outcome, deployment: Deployment) -> None:
    """Print what short and long requests got."""
    served = outcome.served
    kinds = {
        "short": [one for one in served if not one.arrival.long],
        "long": [one for one in served if one.arrival.long],
        "all": list(served),
    }
    table = Table(title=f"Simulated: {len(served):,} requests in {outcome.end:,.0f} s", title_justify="left")
    table.add_column("requests")
    for name in ("TTFT P50", "P90", "P99", "TPOT P50", "P90", "P99", "on time"):
        table.add_column(name, justify="right")
    for kind, ones in kinds.items():
        if not ones:
            continue
        ttft = percentiles([one.ttft for one in ones], (50, 90, 99)) or ()
        tpot = percentiles([one.tpot for one in ones if one.tpot is not None], (50, 90, 99))
        table.add_row(
            f"{len(ones):,} {kind}",
            *(f"{value:.3f} s" for value in ttft),
            *(("-",) * 3 if tpot is None else [f"{1000 * value:.1f} ms" for value in tpot]),
            _share(on_time(ones)),
        )
    console = wide_console()
    console.print(table)
    busy, tokens = outcome.totals.seconds / outcome.end, outcome.totals.tokens / outcome.end
    console.print(
        f"Simulated on {deployment.about}. {tokens:,.0f} tokens/s, busy for {100 * busy:.0f} % of the time. TTFT: "
        "arrival to first token. TPOT: (last - first) / (tokens - 1). On time: first token within "
        "max(1.5 x alone, 0.5 s).",
        soft_wrap=True,
    )


def print_errors(measured: Calibration) -> None:
    """Print how far calibrated times are off, by kind of tick."""
    table = Table(title="Measured ticks that the times were not fitted to: |predicted - measured| / measured")
    table.add_column("ticks")
    for name in ("number", "median", "P90"):
        table.add_column(name, justify="right")
    for one in measured.errors:
        table.add_row(one.regime, f"{one.ticks:,}", f"{100 * one.median:.1f} %", f"{100 * one.p90:.1f} %")
    wide_console().print(table)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def wide_console() -> Console:
    """A console that is wide enough for tables where output is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    return console
