"""`medha-jax plan`: the layouts of a model on a number of devices, and estimates for each. Loads nothing."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medha_jax.cli.generation_report import reader_may_leave
from medha_jax.cli.opening import tell
from medha_jax.cli.option_groups import Shown, takes_groups
from medha_jax.cli.progress import Progress
from medha_jax.config import setting

if TYPE_CHECKING:
    from medha_jax.simulate.estimate import Estimate
    from medha_jax.simulate.hardware import Hardware
    from medha_jax.simulate.layouts import Refused
    from medha_jax.specs.model import Architecture

UNITS = {"": 1, "K": 2**10, "M": 2**20}
SAMPLE, SAMPLE_SECONDS = 0, 400.0  # seed, and seconds of the requests that represent a workload

_TRAFFIC = "Traffic"
# criteria for the choice of a layout; the least value is best
BEST: dict[str, Callable[[Estimate], float]] = {
    "goodput": lambda one: -one.goodput_per_s,
    "ttft": lambda one: one.ttft_s,
    "tpot": lambda one: one.tpot_s,
    "cost": lambda one: one.usd_per_million or float("inf"),
}


@dataclass(frozen=True)
class PlanOptions:
    """The model, the devices and the targets."""

    model: str = setting("llama3-8b", "llama3-8b and others, a config.json, or its directory.", metavar="NAME|FILE|DIR")
    hardware: str = setting("h100", "a100-80, h100, h200, b200, cpu, or a YAML file.", metavar="NAME|FILE")
    devices: int = setting(8, "Devices in all.", at_least=1, at_most=16384)
    context: str = setting("128K", "Tokens of a longest request; 512K and 10M are 512 and 10,240 x 1,024.", metavar="N")
    dtype: str = setting("bfloat16", "Of weights, activations and KV.", choices=("bfloat16", "float32"))
    slots: int = setting(128, "Most requests at once.", at_least=128, at_most=65536)
    workload: str = setting("5", "Mix of requests: percentage of long ones.", metavar="0|1|5", panel=_TRAFFIC)
    slo_ttft_s: float | None = setting(
        None,
        "Seconds to the first token. Default: max(1.5 x alone, 0.5 s).",
        at_least=1e-3,
        metavar="S",
        panel=_TRAFFIC,
    )
    slo_tpot_ms: float = setting(50.0, "Per token of output.", at_least=0.1, metavar="MS", panel=_TRAFFIC)


@dataclass(frozen=True)
class ShownOptions:
    """Which layout is chosen, and what is shown."""

    choose: str = setting("goodput", "What the chosen layout is best in.", choices=tuple(BEST))
    write: Path | None = setting(None, "Write the chosen layout there, for --mesh.")
    plot: Path | None = setting(None, "Draw them: .svg, .png or .pdf.")
    all_rows: bool = setting(False, "Print every layout that fits, not the first 24.", option="all", switch=True)
    json: bool = setting(False, "Print one JSON object instead of a table.", switch=True)


@takes_groups
def plan(asked: PlanOptions, shown: Annotated[ShownOptions, Shown(panel="Output")]) -> None:
    """Compare every layout (tp, spp, kvp, tokens per group) of a model on so many devices.

    The chosen one keeps the targets with a longest request alone, if any does. All figures are estimates of a cost
    model: published peak rates, and shares of them that are assumed where the specification of the hardware says so.
    """
    from medha_jax.simulate.hardware import load_hardware
    from medha_jax.simulate.named_models import load_model

    arch, on, tokens = load_model(asked.model), load_hardware(asked.hardware), token_count(asked.context)
    on.peak_of(asked.dtype)
    if shown.plot is not None:
        from medha_jax.cli.plan_plot import check_plot

        check_plot(shown.plot)
    found, refused = _compare(arch, on, tokens, asked)
    slo_ttft_s = asked.slo_ttft_s or math.inf
    keeping = [one for one in found if one.tpot_s <= asked.slo_tpot_ms / 1000 and one.ttft_s <= slo_ttft_s]
    chosen = _best(keeping or found, shown.choose) if found else None
    with reader_may_leave():
        if shown.json:
            from medha_jax.cli.plan_tables import plan_json

            print(plan_json(asked.model, on, tokens, found, refused, chosen), flush=True)
        else:
            from medha_jax.cli.plan_tables import print_plan

            print_plan(asked.model, on, tokens, found, refused, chosen, shown.all_rows)
    if found and not keeping:
        tell("no layout keeps the targets with a longest request")
    if tokens > arch.context:
        tell(f"{tokens:,} tokens are more than the model's own {arch.context:,}")
    if chosen is None:
        raise typer.Exit(1)
    if shown.write is not None:
        _write(shown.write, chosen, asked.model, asked.devices, tokens)
    if shown.plot is not None:
        from medha_jax.cli.plan_plot import draw

        draw(shown.plot, found, chosen, f"{asked.model}, {asked.devices} x {on.name}, {tokens:,} tokens: estimates")


def token_count(text: str) -> int:
    """Tokens from a number that may end in K (1,024) or M (1,024²).

    Raises:
        typer.BadParameter: it is malformed, or out of range.
    """
    match = re.fullmatch(r"([0-9]{1,12})([KM]?)", text.strip().upper())
    count = int(match[1]) * UNITS[match[2]] if match else 0
    if not 1 <= count <= 2**30:
        raise typer.BadParameter(f"{text!r} is no number of tokens; give for example 131072, 512K or 10M, up to 1024M")
    return count


def _compare(
    arch: Architecture, hardware: Hardware, context: int, asked: PlanOptions
) -> tuple[list[Estimate], list[Refused]]:
    """Estimates of layouts, best goodput first within front and rest, and the layouts that are impossible."""
    from medha_jax.simulate.estimate import Estimator, Targets, mark_front
    from medha_jax.simulate.layouts import Refused, candidates, look_at
    from medha_jax.workload import WorkloadConfig, build, preset_of

    workload = WorkloadConfig(source=preset_of(asked.workload), duration=SAMPLE_SECONDS, seed=SAMPLE)
    sample = build(workload).requests
    targets = Targets(asked.slo_ttft_s, asked.slo_tpot_ms / 1000)
    found: list[Estimate] = []
    refused: list[Refused] = []
    every = list(candidates(asked.devices, context, hardware))
    with Progress("layouts", len(every), time.monotonic) as progress:
        for done, candidate in enumerate(every, 1):
            looked = look_at(candidate, arch, hardware, asked.dtype, context, asked.slots)
            if isinstance(looked, Refused):
                refused.append(looked)
            else:
                found.append(Estimator(looked, hardware, context, targets, asked.slots).estimate(sample))
            progress.show(done, f"plan: {done:,} of {len(every):,} layouts")
    fronts = mark_front(found) if found else []
    marked = [dataclasses.replace(one, front=front) for one, front in zip(found, fronts, strict=True)]
    return sorted(marked, key=lambda one: (not one.front, -one.goodput_per_s, one.ttft_s)), refused


def _best(found: Sequence[Estimate], choose: str) -> Estimate:
    """The layout that is best by one criterion; of equals, the one with the least TTFT."""
    return min(found, key=lambda one: (BEST[choose](one), one.ttft_s))


def _write(path: Path, chosen: Estimate, model: str, devices: int, context: int) -> None:
    from medha_jax.simulate.layouts import layout_yaml

    mesh = chosen.candidate.mesh
    comment = (
        f"{model} on {devices} x {mesh.hardware} for {context:,} tokens, chosen by medha-jax plan. Estimated, not "
        f"measured: {chosen.ttft_s:,.2f} s to the first token of a longest prompt alone, then "
        f"{1000 * chosen.tpot_s:.1f} ms a token."
    )
    path.write_text(layout_yaml(mesh, comment), encoding="utf-8")
    tell(f"wrote {path}: --mesh {path}")
