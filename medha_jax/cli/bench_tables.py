"""The tables that `medha-jax bench` prints for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from medha_jax.results import FORMULAS, Run, run_tables
from medha_jax.results.units import digits, seconds

if TYPE_CHECKING:
    from medha_jax.bench.convoy import Convoy, Figures
    from medha_jax.bench.search import Found
    from medha_jax.cli.engine_speed import EngineSpeed, Speed
    from medha_jax.cli.opening import StartWatch

WIDTH = 140  # of output that is no terminal
NOTHING = "–"


def print_runs(runs: Sequence[Run]) -> None:
    """Print runs side by side."""
    console = _console()
    for table in run_tables(runs):
        drawn = Table(title=table.title, title_justify="left")
        for place, column in enumerate(table.columns):
            drawn.add_column(column, justify="left" if place < table.words else "right")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
        if table.note:
            console.print(table.note, soft_wrap=True)
    print_stamp(console, runs[0].stamp)


def print_convoy(convoys: Sequence[Convoy], target_ms: float | None, stamp: Mapping[str, Any]) -> None:
    """Print what every server made of a convoy; ratios are to the first.

    Args:
        convoys: of the same requests.
        target_ms: per output token, that the servers aimed at; None where it is not known.
        stamp: of the measurement.
    """
    from medha_jax.bench.convoy import figures

    config = convoys[0].config
    table = Table(
        title=f"Convoy: one prompt of {config.long_prompt:,} tokens, then {config.shorts:,} of {config.short_prompt:,} "
        f"tokens, one every {config.interval:g} s",
        title_justify="left",
    )
    table.add_column("")
    for convoy in convoys:
        table.add_column(convoy.name, justify="right")
    for label, cells in _convoy_rows(convoys, [figures(convoy) for convoy in convoys]):
        table.add_row(label, *cells)
    console = _console()
    console.print(table)
    aim = "" if target_ms is None else f" (the servers aim at {target_ms:g} ms)"
    console.print(
        f"TTFT: {FORMULAS['TTFT']}. TPOT: {FORMULAS['TPOT']}{aim}. Less than the first: P50 of the first column / that "
        "of the column. Long done: sending of the long request to its last token. Alone: the same on the idle server, "
        "measured just before. Goodput: requests that met their objectives / seconds; without --slo-ttft-ms the first "
        "token is due within max(1.5 x alone, 0.5 s).",
        soft_wrap=True,
    )
    print_stamp(console, stamp)


def _convoy_rows(convoys: Sequence[Convoy], found: Sequence[Figures]) -> Iterator[tuple[str, list[str]]]:
    """Label and cells of every row."""
    parts = ("P50", "P90", "P99")
    ttfts, tpots = [one.short_ttft for one in found], [one.short_tpot for one in found]
    for place, part in enumerate(parts):
        yield f"short TTFT {part}", [_time(None if each is None else each[place]) for each in ttfts]
        if not place:
            first = ttfts[0]
            yield "… less than the first", [f"{digits(first[0] / t[0])}x" if first and t else NOTHING for t in ttfts]
    for place, part in enumerate(parts):
        yield f"short TPOT {part}", [_time(None if each is None else each[place]) for each in tpots]
    yield "long TTFT", [_time(one.long_ttft) for one in found]
    yield "long done", [_time(one.long_finish) for one in found]
    yield "long alone", [_time(convoy.alone.long_s) for convoy in convoys]
    yield "long + all short alone", [_time(one.bound) for one in found]
    yield "done / that", [NOTHING if one.over_bound is None else f"{one.over_bound:.2f}" for one in found]
    yield "output tokens/s", [digits(one.output_throughput) for one in found]
    yield "goodput, requests/s", [NOTHING if one.goodput is None else digits(one.goodput) for one in found]


def print_search(found: Found, wanted: float, what: str) -> None:
    """Print the rates that were tried, in their order.

    Args:
        found: by the search.
        wanted: attainment from which on a rate is good enough.
        what: was asked, in words.
    """
    table = Table(title=f"Rates tried: {what}", title_justify="left")
    for head in ("requests/s", "attainment", ""):
        table.add_column(head, justify="right")
    for one in found.tried:
        share = NOTHING if one.attainment is None else f"{100 * one.attainment:.1f} %"
        table.add_row(digits(one.rate), share, "good" if (one.attainment or 0) >= wanted else "")
    console = _console()
    console.print(table)
    if found.best is None:
        console.print(f"No rate down to {digits(found.tried[-1].rate)} requests/s has {100 * wanted:g} % on time.")
        return
    border = "no higher one was tried" if found.bad is None else f"{digits(found.bad)} was too many"
    console.print(f"Highest rate with {100 * wanted:g} % on time: {digits(found.best)} requests/s ({border}).")
    console.print(f"Attainment: {FORMULAS['attainment']}.", soft_wrap=True)


def print_engine(speed: EngineSpeed, prefills: Sequence[Speed], decoded: Sequence[Speed], start: StartWatch) -> None:
    """Print what an engine does without a network."""
    console = _console()
    table = Table(title="Prompt chunks", title_justify="left")
    for head in ("tokens", "at context", "tick", "tokens/s", "ticks"):
        table.add_column(head, justify="right")
    for one in prefills:
        shown = digits(one.tokens_per_second)
        table.add_row(f"{one.rows:,}", f"{one.context:,}", seconds(one.seconds), shown, f"{one.ticks}")
    console.print(table)
    table = Table(title="Decodes", title_justify="left")
    for head in ("requests", "at context", "tick", "tokens/s", f"of {decoded[0].rows}", "ticks"):
        table.add_column(head, justify="right")
    base = decoded[0].tokens_per_second
    for one in decoded:
        rate = one.tokens_per_second
        times = f"{rate / base:.1f}x"
        table.add_row(f"{one.rows:,}", f"{one.context:,}", seconds(one.seconds), digits(rate), times, f"{one.ticks}")
    console.print(table)
    host, prediction = speed.host, speed.prediction()
    if host is not None:
        console.print(
            f"Host: scheduling and delivering {seconds(host.schedule)} a tick, packing and dispatching "
            f"{seconds(host.submit)}, waiting for results {seconds(host.wait)} (medians of {host.ticks:,} ticks).",
            soft_wrap=True,
        )
    if prediction is not None:
        console.print(
            f"Time model, fitted to half of the ticks: |predicted - measured| / measured of the others is "
            f"{100 * prediction.median:.1f} % in the median, {100 * prediction.p90:.1f} % at P90 "
            f"({prediction.ticks:,} ticks).",
            soft_wrap=True,
        )
    console.print(
        f"Start: {seconds(start.start_s)}, of which {seconds(start.compile_s)} compiling {start.programs} programs "
        f"({start.from_cache} from the cache).",
        soft_wrap=True,
    )


def print_stamp(console: Console, stamp: Mapping[str, Any]) -> None:
    """Print where and with what it was measured."""
    versions = stamp.get("versions", {})
    shown = ", ".join(
        f"{name} {versions[name]}" for name in ("medha-jax", "jax", "grpcio", "aiohttp") if name in versions
    )
    commit = stamp.get("commit")
    at = f", commit {commit[:12]}" if isinstance(commit, str) else ""
    console.print(f"Measured on {stamp.get('cpu')}, {stamp.get('cores')} cores; {shown}{at}.", soft_wrap=True)


def _times(values: tuple[float, float, float] | None) -> tuple[str, str, str]:
    return (NOTHING,) * 3 if values is None else tuple(map(seconds, values))  # type: ignore[return-value]


def _time(value: float | None) -> str:
    return NOTHING if value is None else seconds(value)


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    return console
