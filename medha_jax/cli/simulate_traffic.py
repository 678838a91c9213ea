"""`medha-jax simulate traffic`: a workload on a machine of a cost model, or on one that was measured."""

from __future__ import annotations

import dataclasses
import json as jsons
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medha_jax.cli.generation_report import reader_may_leave
from medha_jax.cli.mesh import MeshOption, mesh_config
from medha_jax.cli.plan import token_count
from medha_jax.cli.progress import SimulationProgress
from medha_jax.config import SchedulerConfig

if TYPE_CHECKING:
    from medha_jax.simulate.calibration import Calibration
    from medha_jax.simulate.deployments import Deployment
    from medha_jax.workload import Arrival

_MACHINE, _WORKLOAD, _SCHEDULER = "Machine", "Workload", "Scheduler"


def traffic(
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Ticks that `simulate measure` wrote.", rich_help_panel=_MACHINE),
    ] = None,
    model: Annotated[
        str,
        typer.Option(metavar="NAME|FILE|DIR", help="llama3-8b and others, or a config.json.", rich_help_panel=_MACHINE),
    ] = "llama3-8b",
    mesh: MeshOption = "dgx-h100-8",
    context: Annotated[
        str, typer.Option(metavar="N", help="Tokens of a longest request: 131072, 512K, 10M.", rich_help_panel=_MACHINE)
    ] = "1M",
    slots: Annotated[
        int, typer.Option(min=1, max=65536, metavar="N", help="Most requests at once.", rich_help_panel=_MACHINE)
    ] = 128,
    workload: Annotated[
        str, typer.Option(metavar="0|1|5", help="Percentage of long requests.", rich_help_panel=_WORKLOAD)
    ] = "5",
    scale: Annotated[
        float,
        typer.Option(
            min=1e-4, max=10, metavar="X", help="Multiplies every prompt and output.", rich_help_panel=_WORKLOAD
        ),
    ] = 1,
    rate: Annotated[
        float, typer.Option(min=1e-4, metavar="X", help="Requests a second, Poisson.", rich_help_panel=_WORKLOAD)
    ] = 0.5,
    duration: Annotated[
        float, typer.Option(min=1, metavar="S", help="Seconds in which requests come.", rich_help_panel=_WORKLOAD)
    ] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Of lengths and arrivals.", rich_help_panel=_WORKLOAD)] = 0,
    policy: Annotated[
        str, typer.Option(metavar="NAME", help="Order of the prompts.", rich_help_panel=_SCHEDULER)
    ] = SchedulerConfig().policy,
    tpot_ms: Annotated[
        float, typer.Option(min=1, metavar="MS", help="Target per output token.", rich_help_panel=_SCHEDULER)
    ] = 50,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with a record a request.")] = False,
) -> None:
    """Serve a workload on the virtual clock: TTFT, TPOT and throughput, by kind of request.

    With --calibration the machine is the measured one, and how far its times are off is printed by kind of tick.
    """
    from medha_jax.simulate.records import records
    from medha_jax.simulate.run import simulate as run
    from medha_jax.simulate.run import spare_modules

    measured = None
    if calibration is None:
        machine = _modelled(model, mesh, token_count(context), slots)
    else:
        measured = _measured(calibration)
        machine = measured.machine()
    arrivals = _arrivals(workload, scale, rate, duration, seed, machine.context)
    settings = SchedulerConfig(max_waiting=2**31, policy=policy, tpot_target_s=tpot_ms / 1000)
    spare_modules()
    with SimulationProgress(policy, len(arrivals), time.monotonic) as progress:
        outcome = run(machine, settings, arrivals, on_progress=progress.update)
    found = records(outcome, settings.tpot_target_s)
    with reader_may_leave():
        if json:
            stated = {
                "simulated": True,
                "machine": machine.about,
                "errors": [dataclasses.asdict(one) for one in measured.errors] if measured else None,
                "seconds": outcome.end,
                "records": [dataclasses.asdict(one) for one in found],
            }
            print(jsons.dumps(stated, allow_nan=False), flush=True)
        else:
            from medha_jax.cli.simulate_tables import print_errors, print_traffic

            print_traffic(outcome, machine)
            if measured is not None:
                print_errors(measured)


def _modelled(model: str, mesh: str, context: int, slots: int) -> Deployment:
    """A machine of a cost model; the layout names its hardware."""
    from medha_jax.simulate.cost import CostModel
    from medha_jax.simulate.deployments import deploy
    from medha_jax.simulate.device_sizes import DeviceSizes
    from medha_jax.simulate.hardware import load_hardware
    from medha_jax.simulate.named_models import load_model

    layout = mesh_config(mesh)
    hardware = load_hardware(layout.hardware)
    dtype = "float32" if hardware.name == "cpu" else "bfloat16"
    cost = CostModel(DeviceSizes(load_model(model), layout, dtype), hardware)
    return deploy(cost, context, max(slots, layout.buckets.decode[-1]), model)


def _measured(path: Path) -> Calibration:
    from medha_jax.simulate.calibration import read_calibration

    return read_calibration(path)


def _arrivals(workload: str, scale: float, rate: float, duration: float, seed: int, context: int) -> list[Arrival]:
    """Requests of a mix, scaled; none longer than the context."""
    from medha_jax.workload import load_mix

    def scaled(one: Arrival) -> Arrival:
        output = min(max(1, round(scale * one.output)), context // 2)
        return dataclasses.replace(one, output=output, prompt=min(max(1, round(scale * one.prompt)), context - output))

    return [scaled(one) for one in load_mix(workload).poisson(rate, duration, seed)]
