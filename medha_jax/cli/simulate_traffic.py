"""`medha-jax simulate traffic`: a workload on a machine with modelled or measured times."""

from __future__ import annotations

import dataclasses
import json as jsons
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from medha_jax.cli.bench_options import WorkloadOptions, shares
from medha_jax.cli.option_groups import Shown, takes_groups
from medha_jax.cli.plan import token_count
from medha_jax.cli.progress import SimulationProgress
from medha_jax.cli.runtime_options import mesh_config
from medha_jax.cli.standard_streams import print_result
from medha_jax.collector import exempt_live_objects
from medha_jax.config import SchedulerConfig, same_setting, setting

if TYPE_CHECKING:
    from medha_jax.simulate.deployments import Deployment
    from medha_jax.simulate.simulation import Outcome
    from medha_jax.workload import WorkloadRequest

_MACHINE, _WORKLOAD = "Machine", "Workload"

# The scheduler's settings in simulations: no limit on waiting requests, and no cache, as prompts have no content.
SIMULATED = Shown(
    without=("max_waiting", "max_waiting_tokens", "max_tenant_waiting_tokens", "prefix_cache"),
    defaults={"max_waiting": 2**31, "prefix_cache": False},
    options={"tpot_target_s": "tpot_ms"},
)


@dataclass(frozen=True)
class TrafficOptions:
    """The machine and its requests."""

    calibration: Path | None = setting(None, "Ticks that `simulate measure` wrote.", metavar="FILE", panel=_MACHINE)
    model: str = setting(
        "llama3-8b", "llama3-8b and others, or a config.json.", metavar="NAME|FILE|DIR", panel=_MACHINE
    )
    mesh: str = setting(
        "dgx-h100-8", "YAML file, a name from mesh_configs/, or tp=N,spp=N,kvp=N.", metavar="LAYOUT", panel=_MACHINE
    )
    context: str = setting("1M", "Tokens of a longest request: 131072, 512K, 10M.", metavar="N", panel=_MACHINE)
    slots: int = setting(128, "Most requests at once.", at_least=1, at_most=65536, panel=_MACHINE)
    chunks_only: bool = setting(
        False, "Without slices: every chunk passes all layers in a tick.", switch=True, panel=_MACHINE
    )
    as_in: Path | None = setting(
        None,
        "The same requests as in a run that `bench --out` wrote, and both side by side; options below are not read.",
        metavar="DIR",
        panel=_WORKLOAD,
    )
    workload: str = setting("5", "Percentage of long requests, or a preset's name.", metavar="0|1|5", panel=_WORKLOAD)
    scale: float = setting(
        1.0, "Multiplies every prompt and output.", at_least=1e-4, at_most=10, metavar="X", panel=_WORKLOAD
    )
    rate: float = setting(0.5, "Requests a second, Poisson.", at_least=1e-4, metavar="X", panel=_WORKLOAD)
    duration: float = setting(600.0, "Seconds in which requests come.", at_least=1, metavar="S", panel=_WORKLOAD)
    seed: int = setting(0, "Of lengths and arrivals.", at_least=0, panel=_WORKLOAD)
    priorities: str | None = same_setting(WorkloadOptions, "priorities", panel=_WORKLOAD)
    json: bool = setting(False, "Print one JSON object, with a record a request.", switch=True)


@takes_groups
def traffic(asked: TrafficOptions, settings: Annotated[SchedulerConfig, SIMULATED]) -> None:
    """Serve a workload on the virtual clock: TTFT, TPOT and throughput, by kind of request.

    With --calibration the machine is the measured one, and how far its times are off is printed by kind of tick.
    """
    from medha_jax.cli.printing import print_table
    from medha_jax.cli.simulate_tables import print_errors, print_traffic
    from medha_jax.results import run_tables
    from medha_jax.simulate.calibration import read_calibration
    from medha_jax.simulate.deployments import modelled
    from medha_jax.simulate.replay import read_real, requests_of, simulated_run

    measured = None
    if asked.calibration is None:
        machine = modelled(asked.model, mesh_config(asked.mesh), token_count(asked.context), asked.slots)
    else:
        measured = read_calibration(asked.calibration)
        machine = measured.machine()
    machine = machine.chunks_only if asked.chunks_only else machine
    real = None if asked.as_in is None else read_real(asked.as_in)
    requests = _drawn(asked, machine.context) if real is None else requests_of(real)
    outcome = simulated(settings.policy, machine, settings, requests)

    def stated() -> str:
        records = [dataclasses.replace(one, tpot_slo_s=settings.tpot_target_s) for one in outcome.records]
        found = {
            "simulated": True,
            "machine": machine.about,
            "errors": [dataclasses.asdict(one) for one in measured.errors] if measured else None,
            "seconds": outcome.end,
            "records": [dataclasses.asdict(one) for one in records],
        }
        return jsons.dumps(found, allow_nan=False)

    def print_tables() -> None:
        print_traffic(outcome, machine, settings)
        for table in run_tables([real, simulated_run(outcome, machine, real)]) if real else ():
            print_table(table)
        if measured is not None:
            print_errors(measured)

    print_result(asked.json, stated, print_tables)


def _drawn(asked: TrafficOptions, context: int) -> list[WorkloadRequest]:
    """Scaled requests of a mix; those longer than the context are cut to it."""
    from medha_jax.workload import WorkloadConfig, build, preset_of

    config = WorkloadConfig(
        source=preset_of(asked.workload),
        scale=asked.scale,
        rate=asked.rate,
        duration=asked.duration,
        seed=asked.seed,
        priorities=shares("--priorities", asked.priorities),
    )

    def fitted(one: WorkloadRequest) -> WorkloadRequest:
        output = min(one.output_tokens, context // 2)
        return dataclasses.replace(one, output_tokens=output, prompt_tokens=min(one.length, context - output))

    return [fitted(one) for one in build(config).requests]


def simulated(
    name: str,
    deployment: Deployment,
    config: SchedulerConfig,
    requests: Sequence[WorkloadRequest],
    until: float | None = None,
) -> Outcome:
    """Simulate requests, until that second or to the end of all, and show progress under a name."""
    from medha_jax.simulate.simulation import simulate as run

    exempt_live_objects()
    with SimulationProgress(name, len(requests), time.monotonic) as progress:
        return run(deployment, config, requests, until, progress.update)
