"""`medha-jax bench serve`: load on a server, and how its requests fare."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from medha_jax.cli.bench_options import (
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
from medha_jax.cli.option_groups import takes_groups
from medha_jax.cli.standard_streams import print_result

if TYPE_CHECKING:
    from medha_jax.results import Run


@takes_groups
def bench_serve(
    context: typer.Context,
    service: ServerOptions,
    policy: PolicyOptions,
    asked: WorkloadOptions,
    times: ArrivalOptions,
    client: ClientOptions,
    output: OutputOptions,
) -> int:
    """Put load on a server and report what its requests get: TTFT, TPOT, throughput, goodput.

    Without --server and --url it starts `medha-jax serve`, and stops it at the end.
    """
    from medha_jax.cli.bench_tables import print_runs
    from medha_jax.results import runs_json
    from medha_jax.workload import build

    check_own(context, service)
    config = asked.config(times)
    drawn, began = build(config), datetime.now(UTC)

    async def measure(server: Opened) -> Run | None:
        fitted = await server.ready(config)
        done = await server.session.repeat(fitted, times.repeat)
        return server.run(done, fitted, rate=fitted.steady_rate) if done else None

    with kept(output.out, "medha-jax bench serve") as runs:
        with opened(service, policy, all_requests(drawn, config, times.repeat)) as target:
            run, stopped = spoken_to(target, client, began, measure)
            if run is not None:
                runs.append(run)
        if run is None:
            return INTERRUPTED
        failed = complain(run.repeats)
    print_result(output.json, lambda: runs_json([run]), lambda: print_runs([run]))
    return INTERRUPTED if stopped else int(failed)
