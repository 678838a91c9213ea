"""`medha-jax plan`: the layouts of a model on a number of devices, and estimates for each. Loads nothing."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medha_jax.cli.opening import tell
from medha_jax.cli.option_groups import Shown, takes_groups
from medha_jax.cli.progress import Progress
from medha_jax.cli.standard_streams import print_result
from medha_jax.config import setting

if TYPE_CHECKING:
    from medha_jax.simulate.estimate import Estimate

UNITS = {"": 1, "K": 2**10, "M": 2**20}
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
    from medha_jax.cli.plan_plot import check_plot, draw
    from medha_jax.cli.plan_tables import plan_json, print_plan
    from medha_jax.simulate.estimate import Targets
    from medha_jax.simulate.hardware import load_hardware
    from medha_jax.simulate.layout_plan import plan_layouts
    from medha_jax.simulate.layouts import candidates
    from medha_jax.simulate.named_models import load_model

    arch, on, tokens = load_model(asked.model), load_hardware(asked.hardware), token_count(asked.context)
    on.peak_of(asked.dtype)
    if shown.plot is not None:
        check_plot(shown.plot)
    targets = Targets(asked.slo_ttft_s, asked.slo_tpot_ms / 1000)
    every = list(candidates(asked.devices, tokens, on))
    with Progress("layouts", len(every), time.monotonic) as progress:
        planned = plan_layouts(
            every,
            arch,
            on,
            tokens,
            dtype=asked.dtype,
            slots=asked.slots,
            workload=asked.workload,
            targets=targets,
            on_progress=lambda done: progress.show(done, f"plan: {done:,} of {len(every):,} layouts"),
        )
    found = planned.found
    keeping = [one for one in found if one.tpot_s <= targets.tpot_s and one.ttft_s <= (targets.ttft_s or math.inf)]
    # of equals, the one with the least TTFT
    chosen = min(keeping or found, key=lambda one: (BEST[shown.choose](one), one.ttft_s), default=None)
    print_result(
        shown.json,
        lambda: plan_json(asked.model, planned, chosen),
        lambda: print_plan(asked.model, planned, chosen, shown.all_rows),
    )
    if found and not keeping:
        tell("no layout keeps the targets with a longest request")
    if tokens > arch.context:
        tell(f"{tokens:,} tokens are more than the model's own {arch.context:,}")
    if chosen is None:
        raise typer.Exit(1)
    if shown.write is not None:
        _write(shown.write, chosen, asked.model, asked.devices, tokens)
    if shown.plot is not None:
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
