"""`medha-jax bench search`: the highest rate at which requests are still on time."""

from __future__ import annotations

import dataclasses
import json as jsons
from typing import TYPE_CHECKING, Annotated

import typer

from medha_jax.cli.bench_options import (
    LENGTH_AWARE,
    ClientOptions,
    OutputOptions,
    PolicyOptions,
    ServerOptions,
    WorkloadOptions,
)
from medha_jax.cli.bench_run import Book, Opened, complain, ready, spoken_to, write
from medha_jax.cli.bench_serve import fitted_to, shown_config
from medha_jax.cli.bench_target import Target, check_own, opened
from medha_jax.cli.exit_codes import INTERRUPTED
from medha_jax.cli.generation_report import reader_may_leave
from medha_jax.cli.opening import tell
from medha_jax.cli.option_groups import Shown, takes_groups
from medha_jax.config import setting

if TYPE_CHECKING:
    from medha_jax.bench.search import Found
    from medha_jax.results import Run
    from medha_jax.workload import WorkloadConfig


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """What to search for."""

    attainment: float = setting(0.9, "Share of requests that must be on time.", at_least=0.01, at_most=1)
    start_rate: float = setting(1.0, "First rate, requests/s.", at_least=0.001, at_most=1e5)
    precision: float = setting(0.1, "How far a bad rate may be above the good one.", at_least=0.001, at_most=1)
    most_rates: int = setting(12, "To try.", at_least=1, at_most=50)


@takes_groups
def bench_search(
    context: typer.Context,
    service: ServerOptions,
    policy: PolicyOptions,
    asked: WorkloadOptions,
    client: ClientOptions,
    output: OutputOptions,
    wanted: Annotated[SearchOptions, Shown(panel="The search")],
) -> int:
    """Find the highest rate of Poisson arrivals at which enough requests meet their objectives.

    Rates double until one is too high, then halve the distance. Without objectives it is --deadline length-aware.
    """
    from medha_jax.workload import build

    check_own(context, service)
    if client.slo_ttft_ms is None and client.slo_tpot_ms is None and client.deadline is None:
        client = dataclasses.replace(client, deadline=LENGTH_AWARE)
    config = asked.config(dict(process="poisson", rate=wanted.start_rate))
    drawn, book = build(config), Book()
    with opened(service, policy, (*drawn.warmup, *drawn.requests)) as target:
        found, runs, stopped = spoken_to(
            target, client, lambda opened: _search(opened, target, config, client, wanted, book)
        )
    write(output.out, runs, "medha-jax bench search")
    if found.tried:
        with reader_may_leave():
            if output.json:
                print(jsons.dumps({"attainment": wanted.attainment, **dataclasses.asdict(found)}), flush=True)
            else:
                from medha_jax.cli.bench_tables import print_search
                from medha_jax.workload import describe

                print_search(found, wanted.attainment, describe(config))
    return INTERRUPTED if stopped else int(found.best is None)


async def _search(
    opened: Opened, target: Target, config: WorkloadConfig, client: ClientOptions, wanted: SearchOptions, book: Book
) -> tuple[Found, list[Run], bool]:
    """The result, a run for every rate, and whether Ctrl-C stopped it."""
    from medha_jax.bench.search import highest_rate
    from medha_jax.workload import build

    fitted = fitted_to(config, opened)
    await ready(opened, build(fitted), client)
    runs: list[Run] = []

    async def measure(rate: float) -> float | None:
        # a new seed, because the prefix cache would hold the prompts of an earlier rate
        at = dataclasses.replace(fitted, rate=rate, seed=fitted.seed + len(runs))
        repeats = await opened.session.repeat(at, 1)
        if opened.session.stopped or not repeats:
            return None
        complain(repeats)
        shown = shown_config(target, at, client)
        runs.append(book.run(f"{rate:.4g} per s", repeats, shown, opened.facts, rate=rate, series=target.name))
        attainment = repeats[0].summary.attainment
        tell(f"{rate:.4g} requests/s: {'nothing' if attainment is None else f'{100 * attainment:.1f} %'} on time")
        return attainment

    found = await highest_rate(measure, wanted.start_rate, wanted.attainment, 1 + wanted.precision, wanted.most_rates)
    return found, runs, opened.session.stopped
