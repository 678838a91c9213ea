"""`medha-jax plan`: which layouts of so many devices a model fits, and what each would do. Nothing is loaded."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medha_jax.cli.plan_progress import LayoutProgress
from medha_jax.cli.report import reader_may_leave

if TYPE_CHECKING:
    from medha_jax.simulate.estimate import Estimate
    from medha_jax.simulate.hardware import Hardware
    from medha_jax.simulate.layouts import Refused
    from medha_jax.specs.model import Architecture
    from medha_jax.workload import Arrival

MOST_DEVICES = 16384
UNITS = {"": 1, "K": 2**10, "M": 2**20}
SAMPLE, SAMPLE_SECONDS = 0, 400.0  # seed and size of the requests that stand for a workload

_TRAFFIC, _OUTPUT = "Traffic", "Output"


class Choose(StrEnum):
    """What the chosen layout is best in."""

    GOODPUT = "goodput"
    TTFT = "ttft"
    TPOT = "tpot"
    COST = "cost"


class Precision(StrEnum):
    """Of weights, activations and KV."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


def plan(
    model: Annotated[
        str, typer.Option(metavar="NAME|FILE|DIR", help="llama3-8b and others, a config.json, or its directory.")
    ] = "llama3-8b",
    hardware: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="a100-80, h100, h200, b200, cpu, or a YAML file.")
    ] = "h100",
    devices: Annotated[int, typer.Option(min=1, max=MOST_DEVICES, metavar="N", help="Devices in all.")] = 8,
    context: Annotated[
        str, typer.Option(metavar="N", help="Tokens of a longest request; 512K and 10M are 512 and 10,240 x 1,024.")
    ] = "128K",
    dtype: Annotated[Precision, typer.Option(help="Of weights, activations and KV.")] = Precision.BFLOAT16,
    slots: Annotated[int, typer.Option(min=128, max=65536, metavar="N", help="Most requests at once.")] = 128,
    workload: Annotated[
        str,
        typer.Option(metavar="0|1|5", help="Mix of requests: percentage of long ones.", rich_help_panel=_TRAFFIC),
    ] = "5",
    slo_ttft_s: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            metavar="S",
            help="Seconds to the first token. Default: max(1.5 x alone, 0.5 s).",
            rich_help_panel=_TRAFFIC,
        ),
    ] = None,
    slo_tpot_ms: Annotated[
        float, typer.Option(min=0.1, metavar="MS", help="Per token of output.", rich_help_panel=_TRAFFIC)
    ] = 50,
    choose: Annotated[
        Choose, typer.Option(help="What the chosen layout is best in.", rich_help_panel=_OUTPUT)
    ] = Choose.GOODPUT,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the chosen layout there, for --mesh.", rich_help_panel=_OUTPUT),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw them: .svg, .png or .pdf.", rich_help_panel=_OUTPUT),
    ] = None,
    all_rows: Annotated[
        bool, typer.Option("--all", help="Print every layout that fits, not the first 24.", rich_help_panel=_OUTPUT)
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.", rich_help_panel=_OUTPUT)
    ] = False,
) -> None:
    """Compare every layout (tp, spp, kvp, tokens per group) of a model on so many devices.

    The chosen one keeps the targets with a longest request alone, if any does. All figures are estimates of a cost
    model: published peak rates, and shares of them that are assumed where the specification of the hardware says so.
    """
    from medha_jax.simulate.hardware import load_hardware
    from medha_jax.simulate.model import load_model

    arch, on, tokens = load_model(model), load_hardware(hardware), token_count(context)
    on.peak_of(str(dtype))
    if plot is not None:
        from medha_jax.cli.plan_plot import check_plot

        check_plot(plot)
    found, refused = _compare(arch, on, devices, tokens, str(dtype), slots, _sample(workload), slo_ttft_s, slo_tpot_ms)
    keeping = [one for one in found if one.tpot_s <= slo_tpot_ms / 1000 and one.ttft_s <= (slo_ttft_s or math.inf)]
    chosen = _best(keeping or found, choose) if found else None
    with reader_may_leave():
        if json:
            from medha_jax.cli.plan_tables import as_json

            print(as_json(model, on, tokens, found, refused, chosen), flush=True)
        else:
            from medha_jax.cli.plan_tables import print_plan

            print_plan(model, on, tokens, found, refused, chosen, all_rows)
    if found and not keeping:
        _tell("no layout keeps the targets with a longest request")
    if tokens > arch.context:
        _tell(f"{tokens:,} tokens are more than the model's own {arch.context:,}")
    if chosen is None:
        raise typer.Exit(1)
    if write is not None:
        _write(write, chosen, model, devices, tokens)
    if plot is not None:
        from medha_jax.cli.plan_plot import draw

        draw(plot, found, chosen, f"{model}, {devices} x {on.name}, {tokens:,} tokens: estimates")


def token_count(text: str) -> int:
    """Tokens of a number that may end in K (1,024) or M (1,024²).

    Raises:
        typer.BadParameter: it is not one, or out of range.
    """
    match = re.fullmatch(r"([0-9]{1,12})([KM]?)", text.strip().upper())
    count = int(match[1]) * UNITS[match[2]] if match else 0
    if not 1 <= count <= 2**30:
        raise typer.BadParameter(f"{text!r} is no number of tokens; give for example 131072, 512K or 10M, up to 1024M")
    return count


def _sample(workload: str) -> list[Arrival]:
    """Requests that stand for a mix."""
    from medha_jax.workload import load_mix

    return load_mix(workload).poisson(1.0, SAMPLE_SECONDS, SAMPLE)


def _compare(
    arch: Architecture,
    hardware: Hardware,
    devices: int,
    context: int,
    dtype: str,
    slots: int,
    sample: Sequence[Arrival],
    ttft_s: float | None,
    tpot_ms: float,
) -> tuple[list[Estimate], list[Refused]]:
    """Every layout's estimate, best goodput first within front and rest, and those that cannot be."""
    from medha_jax.simulate.estimate import Estimator, Targets, mark_front
    from medha_jax.simulate.layouts import Refused, candidates, look_at

    targets = Targets(ttft_s, tpot_ms / 1000)
    found: list[Estimate] = []
    refused: list[Refused] = []
    every = list(candidates(devices, context, hardware))
    with LayoutProgress(len(every), time.monotonic) as progress:
        for candidate in every:
            looked = look_at(candidate, arch, hardware, dtype, context, slots)
            if isinstance(looked, Refused):
                refused.append(looked)
            else:
                found.append(Estimator(looked, hardware, context, targets, slots).estimate(sample))
            progress.advance()
    fronts = mark_front(found) if found else []
    marked = [dataclasses.replace(one, front=front) for one, front in zip(found, fronts, strict=True)]
    return sorted(marked, key=lambda one: (not one.front, -one.goodput_per_s, one.ttft_s)), refused


def _best(found: Sequence[Estimate], choose: Choose) -> Estimate:
    """The layout that is best in one thing, and of those equal in it the one with the least TTFT."""
    order = {
        Choose.GOODPUT: lambda one: -one.goodput_per_s,
        Choose.TTFT: lambda one: one.ttft_s,
        Choose.TPOT: lambda one: one.tpot_s,
        Choose.COST: lambda one: one.usd_per_million or float("inf"),
    }[choose]
    return min(found, key=lambda one: (order(one), one.ttft_s))


def _write(path: Path, chosen: Estimate, model: str, devices: int, context: int) -> None:
    from medha_jax.simulate.layouts import layout_yaml

    mesh = chosen.candidate.mesh
    comment = (
        f"{model} on {devices} x {mesh.hardware} for {context:,} tokens, chosen by medha-jax plan. Estimated, not "
        f"measured: {chosen.ttft_s:,.2f} s to the first token of a longest prompt alone, then "
        f"{1000 * chosen.tpot_s:.1f} ms a token."
    )
    path.write_text(layout_yaml(mesh, comment), encoding="utf-8")
    _tell(f"wrote {path}: --mesh {path}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
