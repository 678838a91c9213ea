"""Tables that `medha-jax bench` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medha_jax.cli.printing import print_line, print_table
from medha_jax.config import SchedulerConfig
from medha_jax.results import FORMULAS, Run, Table, run_tables
from medha_jax.results.units import digits, seconds

if TYPE_CHECKING:
    from medha_jax.bench.convoy import Convoy, Figures
    from medha_jax.bench.search import Found
    from medha_jax.engine.speed import EngineSpeed, Speed, StartWatch

NOTHING = "–"


def print_runs(runs: Sequence[Run]) -> None:
    """Print runs side by side."""
    for table in run_tables(runs):
        print_table(table)
    print_stamp(runs[0].stamp)


def print_convoy(convoys: Sequence[Convoy], target_ms: float | None, stamp: Mapping[str, Any]) -> None:
    """Print how each server handled the same convoy; ratios are to the first. `target_ms` None is unknown."""
    from medha_jax.bench.convoy import figures

    config = convoys[0].config
    long = "one prompt" if config.longs == 1 else f"{config.longs:,} prompts"
    title = (
        f"Convoy: {long} of {config.long_prompt:,} tokens, then {config.shorts:,} of {config.short_prompt:,} "
        f"tokens, one every {config.interval:g} s"
    )
    aim = "" if target_ms is None else f" (the servers aim at {target_ms:g} ms)"
    note = (
        f"TTFT: {FORMULAS['TTFT']}. TPOT: {FORMULAS['TPOT']}{aim}. Less than the first: P50 of the first column / that "
        "of the column. Long done: sending of each long request to its last token; ratios are of the last one. Alone: "
        "on the idle server, just before. Best: with nobody else and without a server, by medha-jax generate in chunks "
        "of 1,024; not known of a server that was there. Goodput: requests that met their objectives / seconds; "
        f"without --slo-ttft-ms the first token is due within {SchedulerConfig().default_deadline_words}."
    )
    rows = _convoy_rows(convoys, [figures(convoy) for convoy in convoys])
    heads = ("", *(convoy.name for convoy in convoys))
    print_table(Table(title, heads, tuple((label, *cells) for label, cells in rows), note))
    print_stamp(stamp)


def _convoy_rows(convoys: Sequence[Convoy], found: Sequence[Figures]) -> Iterator[tuple[str, list[str]]]:
    parts = ("P50", "P90", "P99")
    ttfts, tpots = [one.short_ttft for one in found], [one.short_tpot for one in found]
    for place, part in enumerate(parts):
        yield f"short TTFT {part}", [_time(None if each is None else each[place]) for each in ttfts]
        if not place:
            first = ttfts[0]
            yield "… less than the first", [f"{digits(first[0] / t[0])}x" if first and t else NOTHING for t in ttfts]
    for place, part in enumerate(parts):
        yield f"short TPOT {part}", [_time(None if each is None else each[place]) for each in tpots]
    yield "long TTFT", [", ".join(map(_time, one.long_ttft)) for one in found]
    yield "long done", [", ".join(map(_time, one.long_finish)) for one in found]
    yield "long alone", [_time(convoy.alone.long_s) for convoy in convoys]
    yield "long alone, best", [_time(convoy.alone.best_s) for convoy in convoys]
    yield "alone / best", [_ratio(one.alone_over_best) for one in found]
    yield "done / best", [_ratio(one.over_best) for one in found]
    yield "best + all short alone", [_time(one.bound) for one in found]
    yield "done / that", [_ratio(one.over_bound) for one in found]
    yield "output tokens/s", [digits(one.output_throughput) for one in found]
    yield "goodput, requests/s", [NOTHING if one.goodput is None else digits(one.goodput) for one in found]


def _ratio(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def print_search(found: Found, wanted: float, what: str) -> None:
    """Print the tried rates of the workload `what`; a rate is good enough from attainment `wanted` on."""
    rows = []
    for one in found.tried:
        share = NOTHING if one.attainment is None else f"{100 * one.attainment:.1f} %"
        rows.append((digits(one.rate), share, "good" if (one.attainment or 0) >= wanted else ""))
    print_table(Table(f"Rates tried: {what}", ("requests/s", "attainment", ""), tuple(rows), words=0))
    if found.best is None:
        print_line(f"No rate down to {digits(found.tried[-1].rate)} requests/s has {100 * wanted:g} % on time.")
        return
    border = "no higher one was tried" if found.bad is None else f"{digits(found.bad)} was too many"
    print_line(f"Highest rate with {100 * wanted:g} % on time: {digits(found.best)} requests/s ({border}).")
    print_line(f"Attainment: {FORMULAS['attainment']}.")


def print_engine(speed: EngineSpeed, prefills: Sequence[Speed], decoded: Sequence[Speed], start: StartWatch) -> None:
    """Print the speed of an engine without a network."""

    def row(one: Speed, *more: str) -> tuple[str, ...]:
        rate = digits(one.tokens_per_second)
        return (f"{one.rows:,}", f"{one.context:,}", seconds(one.seconds), rate, *more, f"{one.ticks}")

    heads = ("at context", "tick", "tokens/s")
    rows = tuple(row(one) for one in prefills)
    print_table(Table("Prompt chunks", ("tokens", *heads, "ticks"), rows, words=0))
    base = decoded[0].tokens_per_second
    rows = tuple(row(one, f"{one.tokens_per_second / base:.1f}x") for one in decoded)
    print_table(Table("Decodes", ("requests", *heads, f"of {decoded[0].rows}", "ticks"), rows, words=0))
    host, prediction = speed.host, speed.prediction()
    if host is not None:
        print_line(
            f"Host: scheduling and delivering {seconds(host.schedule)} a tick, packing and dispatching "
            f"{seconds(host.submit)}, waiting for results {seconds(host.wait)} (medians of {host.ticks:,} ticks)."
        )
    if prediction is not None:
        print_line(
            f"Time model, fitted to half of the ticks: |predicted - measured| / measured of the others is "
            f"{100 * prediction.median:.1f} % in the median, {100 * prediction.p90:.1f} % at P90 "
            f"({prediction.ticks:,} ticks)."
        )
    print_line(
        f"Start: {seconds(start.start_s)}, of which {seconds(start.compile_s)} compiling {start.programs} programs "
        f"({start.from_cache} from the cache)."
    )


def print_stamp(stamp: Mapping[str, Any]) -> None:
    """Print the machine and the versions of a measurement."""
    versions = stamp.get("versions", {})
    shown = ", ".join(
        f"{name} {versions[name]}" for name in ("medha-jax", "jax", "grpcio", "aiohttp") if name in versions
    )
    commit = stamp.get("commit")
    at = f", commit {commit[:12]}" if isinstance(commit, str) else ""
    print_line(f"Measured on {stamp.get('cpu')}, {stamp.get('cores')} cores; {shown}{at}.")


def _time(value: float | None) -> str:
    return NOTHING if value is None else seconds(value)
