"""`medha-jax simulate`: the scheduler and the engine on a virtual clock; nothing is loaded, no device is used."""

from __future__ import annotations

import dataclasses
import json as jsons
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from medha_jax.cli.generation_report import reader_may_leave
from medha_jax.cli.progress import SimulationProgress
from medha_jax.cli.simulate_measure import measure
from medha_jax.cli.simulate_traffic import traffic
from medha_jax.config import POLICIES, SchedulerConfig

if TYPE_CHECKING:
    from medha_jax.simulate.deployments import Deployment
    from medha_jax.simulate.run import Outcome
    from medha_jax.workload import Arrival

LOADS = (0.5, 0.9, 1.2)
_WORKLOAD, _SCHEDULER = "Workload", "Scheduler"


class PolicyName(StrEnum):
    """Order of the prompts."""

    FCFS = "fcfs"
    SRTF = "srtf"
    EDF = "edf"
    LRS = "lrs"
    LARS = "lars"
    RED = "red"


DEFAULT_POLICY = PolicyName(SchedulerConfig.policy)


def show_help(context: typer.Context) -> None:
    """Print the help where no command is given."""
    if context.invoked_subcommand is None:
        print(context.get_help())


simulate = typer.Typer(
    help="Simulate traffic through the scheduler and the engine: hours in seconds, without devices.",
    invoke_without_command=True,
    callback=show_help,
)
simulate.command()(traffic)
simulate.command()(measure)

DeploymentOption = Annotated[str, typer.Option(metavar="NAME", help="Machine: a100-16 or a100-16-slow-kv.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of lengths and arrivals.", rich_help_panel=_WORKLOAD)]
TpotOption = Annotated[
    float | None,
    typer.Option(min=1, metavar="MS", help="Target per output token. Default: 50.", rich_help_panel=_SCHEDULER),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


@simulate.command()
def convoy(
    duration: Annotated[
        float,
        typer.Option(
            min=1, metavar="S", help="Seconds in which a short request comes every second.", rich_help_panel=_WORKLOAD
        ),
    ] = 200,
    long_prompt: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens of the long prompt.", rich_help_panel=_WORKLOAD)
    ] = 1_000_000,
    output: Annotated[
        int, typer.Option(min=2, metavar="N", help="Output tokens of every request.", rich_help_panel=_WORKLOAD)
    ] = 64,
    seed: SeedOption = 0,
    deployment: DeploymentOption = "a100-16",
    tpot_ms: TpotOption = None,
    json: JsonOption = False,
) -> None:
    """One long prompt, then a short one of 100 to 2,000 tokens every second: who waits for whom.

    The first row is first come, first served without taking turns chunk by chunk; ratios are to its median.
    """
    from medha_jax.simulate.report import summarise_convoy
    from medha_jax.workload import convoy as workload

    machine, settings = _deployment(deployment), _settings(tpot_ms)
    arrivals = workload(duration, seed, long_prompt, output=output)
    whole = ("fcfs, whole prompts", dataclasses.replace(settings, policy="fcfs", chunk_preemption=False))
    rows = []
    for name, config in (whole, *((name, dataclasses.replace(settings, policy=name)) for name in POLICIES)):
        outcome = _run(name, machine, config, arrivals)
        rows.append(summarise_convoy(name, outcome, machine))
    with reader_may_leave():
        if json:
            print(jsons.dumps({"simulated": True, "rows": [dataclasses.asdict(row) for row in rows]}), flush=True)
        else:
            from medha_jax.cli.simulate_tables import print_convoy

            print_convoy(rows, machine, settings.tpot_target_s)


@simulate.command()
def policies(
    mix: Annotated[
        str, typer.Option(metavar="0|1|5", help="Percentage of long requests.", rich_help_panel=_WORKLOAD)
    ] = "5",
    load: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            metavar="X",
            help="Seconds of isolated prefill that arrive in a second; may be repeated. Default: 0.5, 0.9 and 1.2.",
            rich_help_panel=_WORKLOAD,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0, metavar="X", help="Requests a second, instead of --load.", rich_help_panel=_WORKLOAD),
    ] = None,
    duration: Annotated[
        float, typer.Option(min=1, metavar="S", help="Seconds in which requests come.", rich_help_panel=_WORKLOAD)
    ] = 3600,
    drain: Annotated[
        bool,
        typer.Option(help="Serve everything, or stop when the last request has come.", rich_help_panel=_WORKLOAD),
    ] = True,
    seed: SeedOption = 0,
    policy: Annotated[
        list[PolicyName] | None,
        typer.Option(help="May be repeated. Default: all.", rich_help_panel=_SCHEDULER),
    ] = None,
    margin: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            max=1,
            help=f"Deadline margin of lars; may be repeated. Default: {SchedulerConfig().deadline_margin}.",
            rich_help_panel=_SCHEDULER,
        ),
    ] = None,
    tpot_ms: TpotOption = None,
    deployment: DeploymentOption = "a100-16",
    json: JsonOption = False,
) -> None:
    """Every policy on the same mix of short and long prompts: who is on time, who waits how long."""
    from medha_jax.simulate.report import summarise
    from medha_jax.simulate.run import alone
    from medha_jax.workload import load_mix

    machine, lengths = _deployment(deployment), load_mix(mix)
    variants = _variants(policy, margin, tpot_ms)
    rows = []
    for offered in [None] if rate is not None else load or LOADS:
        if offered is None:
            arrivals = lengths.poisson(rate or 0.0, duration, seed)
        else:
            arrivals = lengths.offered(offered, duration, seed, alone(machine, _settings(tpot_ms)))
        for name, config in variants:
            outcome = _run(name, machine, config, arrivals, None if drain else duration)
            rows.append(summarise(name, outcome, duration))
    with reader_may_leave():
        if json:
            print(jsons.dumps({"simulated": True, "rows": [dataclasses.asdict(row) for row in rows]}), flush=True)
        else:
            from medha_jax.cli.simulate_tables import print_policies

            print_policies(rows, machine, f"{mix} % long, requests come for {duration:,.0f} s, seed {seed}")


def _deployment(name: str) -> Deployment:
    from medha_jax.simulate.deployments import DEPLOYMENTS

    if name not in DEPLOYMENTS:
        raise typer.BadParameter(f"there is no deployment {name!r}; there are {', '.join(DEPLOYMENTS)}")
    return DEPLOYMENTS[name]


def _settings(tpot_ms: float | None) -> SchedulerConfig:
    settings = SchedulerConfig(max_waiting=2**31)
    return settings if tpot_ms is None else dataclasses.replace(settings, tpot_target_s=tpot_ms / 1000)


def _variants(
    policies: Sequence[str] | None, margins: Sequence[float] | None, tpot_ms: float | None
) -> list[tuple[str, SchedulerConfig]]:
    """Schedulers to compare, with their names."""
    settings = _settings(tpot_ms)
    found: list[tuple[str, SchedulerConfig]] = []
    for policy in policies or POLICIES:
        config = dataclasses.replace(settings, policy=str(policy))
        if config.policy == "lars" and margins:
            found += [(f"lars {margin:g}", dataclasses.replace(config, deadline_margin=margin)) for margin in margins]
        else:
            found.append((config.policy, config))
    return found


def _run(
    name: str,
    deployment: Deployment,
    config: SchedulerConfig,
    arrivals: Sequence[Arrival],
    until: float | None = None,
) -> Outcome:
    from medha_jax.simulate.run import simulate as run
    from medha_jax.simulate.run import spare_modules

    spare_modules()
    with SimulationProgress(name, len(arrivals), time.monotonic) as progress:
        return run(deployment, config, arrivals, until, progress.update)
