"""`medha-jax simulate`: scheduler and engine on a virtual clock, without a model or devices."""

from __future__ import annotations

import dataclasses
import json as jsons
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medha_jax.cli.option_groups import Shown, takes_groups
from medha_jax.cli.simulate_measure import measure
from medha_jax.cli.simulate_traffic import SIMULATED, simulated, traffic
from medha_jax.cli.standard_streams import print_result
from medha_jax.config import POLICIES, SchedulerConfig, setting

if TYPE_CHECKING:
    from medha_jax.simulate.deployments import Deployment

LOADS = (0.5, 0.9, 1.2)
SHORT_PROMPTS = 100, 2000  # least and most tokens
_WORKLOAD, _SCHEDULER = "Workload", "Scheduler"

# These commands compare policies, so the scheduler's policy is no option.
EVERY_POLICY = dataclasses.replace(SIMULATED, without=(*SIMULATED.without, "policy", "chunk_preemption"))
EVERY_MARGIN = dataclasses.replace(EVERY_POLICY, without=(*EVERY_POLICY.without, "deadline_margin"))


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


@dataclass(frozen=True)
class ShownSimulation:
    """The machine, and what to print."""

    deployment: str = setting("a100-16", "Machine: a100-16 or a100-16-slow-kv.", metavar="NAME")
    chunks_only: bool = setting(False, "Without slices: every chunk passes all layers in a tick.", switch=True)
    json: bool = setting(False, "Print one JSON object instead of a table.", switch=True)

    @property
    def machine(self) -> Deployment:
        """The named machine.

        Raises:
            typer.BadParameter: there is none.
        """
        from medha_jax.simulate.deployments import DEPLOYMENTS

        if self.deployment not in DEPLOYMENTS:
            raise typer.BadParameter(f"there is no deployment {self.deployment!r}; there are {', '.join(DEPLOYMENTS)}")
        found = DEPLOYMENTS[self.deployment]
        return found.chunks_only if self.chunks_only else found


@dataclass(frozen=True)
class SimulatedConvoy:
    """One long prompt and short ones behind it."""

    duration: float = setting(200.0, "Seconds in which a short request comes every second.", at_least=1, metavar="S")
    long_prompt: int = setting(1_000_000, "Tokens of the long prompt.", at_least=1)
    output: int = setting(64, "Output tokens of every request.", at_least=2)
    seed: int = setting(0, "Of lengths and arrivals.", at_least=0)


@dataclass(frozen=True)
class ComparedPolicies:
    """Traffic, and the policies that serve it."""

    mix: str = setting("5", "Percentage of long requests, or a preset's name.", metavar="0|1|5", panel=_WORKLOAD)
    load: tuple[float, ...] = setting(
        (),
        "Seconds of isolated prefill that arrive in a second; may be repeated. Default: 0.5, 0.9 and 1.2.",
        at_least=0,
        metavar="X",
        panel=_WORKLOAD,
    )
    rate: float | None = setting(
        None, "Requests a second, instead of --load.", at_least=0, metavar="X", panel=_WORKLOAD
    )
    duration: float = setting(3600.0, "Seconds in which requests come.", at_least=1, metavar="S", panel=_WORKLOAD)
    drain: bool = setting(True, "Serve everything, or stop when the last request has come.", panel=_WORKLOAD)
    seed: int = setting(0, "Of lengths and arrivals.", at_least=0, panel=_WORKLOAD)
    policy: tuple[str, ...] = setting((), "May be repeated. Default: all.", choices=POLICIES, panel=_SCHEDULER)
    margin: tuple[float, ...] = setting(
        (),
        f"Deadline margin of lars; may be repeated. Default: {SchedulerConfig.deadline_margin}.",
        at_least=0,
        at_most=1,
        panel=_SCHEDULER,
    )


@simulate.command()
@takes_groups
def convoy(
    asked: Annotated[SimulatedConvoy, Shown(panel=_WORKLOAD)],
    shown: ShownSimulation,
    settings: Annotated[SchedulerConfig, EVERY_POLICY],
) -> None:
    """One long prompt, then a short one of 100 to 2,000 tokens every second: who waits for whom.

    The first row is first come, first served without taking turns chunk by chunk; ratios are to its median.
    """
    from medha_jax.cli.simulate_tables import print_convoy
    from medha_jax.simulate.summaries import summarise_convoy
    from medha_jax.workload import ConvoyConfig, build_convoy

    least, most = SHORT_PROMPTS
    requests = build_convoy(
        ConvoyConfig(
            long_prompt=asked.long_prompt,
            long_output=asked.output,
            shorts=int(asked.duration),
            short_prompt=least,
            short_prompt_most=most,
            short_output=asked.output,
            seed=asked.seed,
        )
    ).requests
    machine = shown.machine
    whole = ("fcfs, whole prompts", dataclasses.replace(settings, policy="fcfs", chunk_preemption=False))
    variants = (whole, *((name, dataclasses.replace(settings, policy=name)) for name in POLICIES))
    rows = [summarise_convoy(name, simulated(name, machine, config, requests), machine) for name, config in variants]
    print_result(shown.json, lambda: _rows_json(rows), lambda: print_convoy(rows, machine, settings.tpot_target_s))


@simulate.command()
@takes_groups
def policies(
    asked: ComparedPolicies, shown: ShownSimulation, settings: Annotated[SchedulerConfig, EVERY_MARGIN]
) -> None:
    """Every policy on the same mix of short and long prompts: who is on time, who waits how long."""
    from medha_jax.cli.simulate_tables import print_policies
    from medha_jax.simulate.simulation import alone
    from medha_jax.simulate.summaries import summarise
    from medha_jax.workload import WorkloadConfig, build, build_offered, preset_of

    machine, variants = shown.machine, _variants(asked, settings)
    workload = WorkloadConfig(source=preset_of(asked.mix), duration=asked.duration, seed=asked.seed)
    rows = []
    for load in [None] if asked.rate is not None else asked.load or LOADS:
        if load is None:
            requests = build(dataclasses.replace(workload, rate=asked.rate or 0.0)).requests
        else:
            requests = build_offered(workload, load, alone(machine, settings)).requests
        for name, config in variants:
            outcome = simulated(name, machine, config, requests, None if asked.drain else asked.duration)
            rows.append(summarise(name, outcome, asked.duration))
    words = f"{asked.mix} % long" if asked.mix.isdigit() else asked.mix
    about = f"{words}, requests come for {asked.duration:,.0f} s, seed {asked.seed}"
    print_result(shown.json, lambda: _rows_json(rows), lambda: print_policies(rows, machine, about, settings))


def _rows_json(rows: Sequence[Any]) -> str:
    return jsons.dumps({"simulated": True, "rows": [dataclasses.asdict(row) for row in rows]})


def _variants(asked: ComparedPolicies, settings: SchedulerConfig) -> list[tuple[str, SchedulerConfig]]:
    found: list[tuple[str, SchedulerConfig]] = []
    for policy in asked.policy or POLICIES:
        config = dataclasses.replace(settings, policy=policy)
        margins = asked.margin if policy == "lars" else ()
        several = [(f"lars {margin:g}", dataclasses.replace(config, deadline_margin=margin)) for margin in margins]
        found += several or [(policy, config)]
    return found
