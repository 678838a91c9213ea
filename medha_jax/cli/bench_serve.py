"""`medha-jax bench serve`: load on a server, and how its requests fare."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import typer

from medha_jax.cli.bench_options import (
    ArrivalOptions,
    ClientOptions,
    OutputOptions,
    PolicyOptions,
    ServerOptions,
    WorkloadOptions,
)
from medha_jax.cli.bench_run import Book, Opened, complain, ready, spoken_to, write
from medha_jax.cli.bench_target import Target, check_own, opened
from medha_jax.cli.exit_codes import INTERRUPTED
from medha_jax.cli.generation_report import reader_may_leave
from medha_jax.cli.option_groups import takes_groups
from medha_jax.config import setting

if TYPE_CHECKING:
    from medha_jax.results import Run
    from medha_jax.workload import ConvoyConfig, WorkloadConfig


@dataclasses.dataclass(frozen=True)
class RepeatOptions:
    """Number of repeats."""

    repeat: int = setting(
        1,
        "Runs, with the next seeds; tables then have means and 95 % intervals.",
        at_least=1,
        at_most=100,
        panel="What is asked",
    )


@takes_groups
def bench_serve(
    context: typer.Context,
    service: ServerOptions,
    policy: PolicyOptions,
    asked: WorkloadOptions,
    times: ArrivalOptions,
    client: ClientOptions,
    output: OutputOptions,
    repeats: RepeatOptions,
) -> int:
    """Put load on a server and report what its requests get: TTFT, TPOT, throughput, goodput.

    Without --server and --url it starts `medha-jax serve`, and stops it at the end.
    """
    from medha_jax.workload import build

    check_own(context, service)
    config = asked.config(times.times)
    drawn = build(config)
    book = Book()
    with opened(service, policy, (*drawn.warmup, *drawn.requests)) as target:
        run, stopped = spoken_to(
            target, client, lambda opened: _measure(opened, target, config, client, repeats.repeat, book)
        )
    if run is None:
        return INTERRUPTED
    failed = complain(run.repeats)
    write(output.out, [run], "medha-jax bench serve")
    with reader_may_leave():
        if output.json:
            from medha_jax.results import runs_json

            print(runs_json([run]), flush=True)
        else:
            from medha_jax.cli.bench_tables import print_runs

            print_runs([run])
    return INTERRUPTED if stopped else int(failed)


async def _measure(
    opened: Opened, target: Target, config: WorkloadConfig, client: ClientOptions, repeats: int, book: Book
) -> tuple[Run | None, bool]:
    """A run of all repeats, None without any, and whether Ctrl-C stopped them."""
    from medha_jax.workload import build

    fitted = fitted_to(config, opened)
    await ready(opened, build(fitted), client)
    done = await opened.session.repeat(fitted, repeats)
    if not done:
        return None, opened.session.stopped
    shown = shown_config(target, fitted, client)
    run = book.run(target.name, done, shown, opened.facts, rate=fitted.rate)
    return run, opened.session.stopped


def fitted_to(config: WorkloadConfig, opened: Opened) -> WorkloadConfig:
    """A workload with a server's vocabulary, and its context as a limit."""
    return dataclasses.replace(config, vocabulary=opened.vocabulary, context_limit=opened.facts.context_tokens)


def shown_config(target: Target, config: WorkloadConfig | ConvoyConfig, client: ClientOptions) -> dict[str, Any]:
    """Settings that results show."""
    from medha_jax.workload import describe

    return {
        "workload": describe(config),
        "requests": dataclasses.asdict(config),
        "server": target.words,
        "client": {name: value for name, value in dataclasses.asdict(client).items() if value is not None},
    }
