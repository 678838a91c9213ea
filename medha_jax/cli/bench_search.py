"""`medha-jax bench search`: the highest rate at which requests are still on time."""

from __future__ import annotations

import dataclasses
import json as jsons
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from medha_jax.cli.bench_options import (
    LENGTH_AWARE,
    ArrivalOptions,
    ClientOptions,
    OutputOptions,
    PolicyOptions,
    ServerOptions,
    WorkloadOptions,
)
from medha_jax.cli.bench_run import Opened, all_requests, complain, kept, spoken_to
from medha_jax.cli.bench_target import check_own, opened
from medha_jax.cli.exit_codes import INTERRUPTED
from medha_jax.cli.opening import tell
from medha_jax.cli.option_groups import Shown, takes_groups
from medha_jax.cli.standard_streams import print_result
from medha_jax.config import setting

if TYPE_CHECKING:
    from medha_jax.bench.search import Found


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
    from medha_jax.bench.search import highest_rate
    from medha_jax.cli.bench_tables import print_search
    from medha_jax.workload import WorkloadError, build, describe

    check_own(context, service)
    if client.slo_ttft_ms is None and client.slo_tpot_ms is None and client.deadline is None:
        client = dataclasses.replace(client, deadline=LENGTH_AWARE)
    config = asked.config(ArrivalOptions(rate=wanted.start_rate))
    drawn, began = build(config), datetime.now(UTC)

    async def search(server: Opened) -> Found:
        fitted = await server.ready(config)

        async def measure(rate: float) -> float | None:
            # a new seed, because the prefix cache would hold the prompts of an earlier rate
            try:
                at = dataclasses.replace(fitted, rate=rate, seed=fitted.seed + len(runs))
                repeats = await server.session.repeat(at, 1)
            except WorkloadError as error:
                if not runs:
                    raise
                tell(f"the search ends before {rate:.4g} requests/s: {error}")
                return None
            if server.session.stopped or not repeats:
                return None
            complain(repeats)
            runs.append(server.run(repeats, at, name=f"{rate:.6g} per s", rate=rate, series=server.target.name))
            attainment = repeats[0].summary.attainment
            share = "nothing" if attainment is None else f"{100 * attainment:.1f} %"
            tell(f"{rate:.4g} requests/s: {share} on time")
            return attainment

        start, precision = wanted.start_rate, 1 + wanted.precision
        return await highest_rate(measure, start, wanted.attainment, precision, wanted.most_rates)

    requests = all_requests(drawn, config, wanted.most_rates)  # each rate has a seed of its own
    with kept(output.out, "medha-jax bench search") as runs, opened(service, policy, requests) as target:
        found, stopped = spoken_to(target, client, began, search)
    if found.tried:
        stated = {"attainment": wanted.attainment, **dataclasses.asdict(found)}
        print_result(
            output.json,
            lambda: jsons.dumps(stated),
            lambda: print_search(found, wanted.attainment, describe(config)),
        )
    return INTERRUPTED if stopped else int(found.best is None)
