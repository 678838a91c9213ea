"""Output of `medha-jax plan`: a table, or one JSON object."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medha_jax.cli.printing import print_line, print_table
from medha_jax.results import Table

if TYPE_CHECKING:
    from medha_jax.simulate.estimate import Estimate
    from medha_jax.simulate.layout_plan import LayoutPlan
    from medha_jax.simulate.layouts import Candidate, Refused

ROWS, REASONS = 24, 12
GIB = 2**30


def print_plan(model: str, planned: LayoutPlan, chosen: Estimate | None, all_rows: bool) -> None:
    """Print every layout that fits, the Pareto front first, and why the others do not fit."""
    hardware, found = planned.hardware, planned.found
    if found:
        print_table(_table(model, planned.context, found if all_rows else found[:ROWS], chosen))
        if len(found) > ROWS and not all_rows:
            print_line(f"{len(found) - ROWS} more fit: --all or --json")
    for line in _reasons(planned.refused, all_rows):
        print_line(line)
    print_line(
        f"Estimates for {hardware.name}: {hardware.about}. * is on the Pareto front of TTFT, TPOT and goodput; > is "
        "chosen. A group: tokens of one request that it holds. TTFT: a longest prompt alone. TPOT: per token after it, "
        "alone. Requests/s: what the layout can serve; goodput: of these on time at the best load, prompts stretched "
        "as under processor sharing. Rates are of all replicas. Layouts are without overlap_rows, so sums over tp run "
        "beside nothing. Assumed, not measured: "
        f"{', '.join(hardware.assumed) or 'nothing'}."
    )


def plan_json(model: str, planned: LayoutPlan, chosen: Estimate | None) -> str:
    """The plan as one line of JSON; times in seconds, memory in bytes."""
    stated: dict[str, Any] = {
        "estimated": True,
        "model": model,
        "hardware": planned.hardware.name,
        "assumed": list(planned.hardware.assumed),
        "context": planned.context,
        "layouts": [_figures(one) | {"chosen": one is chosen} for one in planned.found],
        "refused": [_layout(one.candidate) | {"reason": one.reason} for one in planned.refused],
    }
    return json.dumps(stated, allow_nan=False)


def _layout(candidate: Candidate) -> dict[str, Any]:
    axes = {name: getattr(candidate.mesh, name) for name in ("tp", "spp", "kvp", "tokens_per_group")}
    return axes | {"replicas": candidate.replicas}


def _figures(one: Estimate) -> dict[str, Any]:
    named = "ttft_s", "tpot_s", "requests_per_s", "tokens_per_s", "goodput_per_s"
    return {
        **_layout(one.candidate),
        **{name: getattr(one, name) for name in named},
        "usd_per_million_tokens": one.usd_per_million,
        "head_room_bytes": one.room.head_room,
        "pool_tokens": one.room.pool_tokens,
        "front": one.front,
    }


def _table(model: str, context: int, found: Sequence[Estimate], chosen: Estimate | None) -> Table:
    heads = ("a group", "replicas", "TTFT", "TPOT", "requests/s", "goodput/s", "tokens/s", "USD/M tokens", "head-room")
    rows = []
    for one in found:
        held = one.candidate.mesh.tokens_per_group
        rows.append(
            (
                ("*" if one.front else " ") + (">" if one is chosen else " "),
                str(one.candidate),
                "all" if held is None else f"{held:,}",
                f"{one.candidate.replicas}",
                f"{one.ttft_s:,.2f} s",
                f"{1000 * one.tpot_s:,.1f} ms",
                f"{one.requests_per_s:,.2f}",
                f"{one.goodput_per_s:,.2f}",
                f"{one.tokens_per_s:,.0f}",
                "-" if one.usd_per_million is None else f"{one.usd_per_million:,.3f}",
                f"{one.room.head_room / GIB:,.1f} GiB",
            )
        )
    title = f"Estimated: {model}, requests of up to {context:,} tokens"
    return Table(title, ("", "layout", *heads), tuple(rows), words=2)


def _reasons(refused: Sequence[Refused], all_rows: bool) -> list[str]:
    """Why layouts do not fit: one line each, or one line and an example for each kind of reason."""
    if all_rows:
        return [_reason(one) for one in refused]
    kinds: dict[str, list[Refused]] = {}
    for one in refused:
        kinds.setdefault(re.sub(r"[0-9][0-9,.]*", "N", one.reason), []).append(one)
    most = sorted(kinds.values(), key=len, reverse=True)[:REASONS]
    lines = [f"{len(same)} do not fit, as {_reason(same[0])}" for same in most]
    left = len(kinds) - len(lines)
    return [*lines, f"{left} more kinds of reasons: --all or --json"] if left > 0 else lines


def _reason(one: Refused) -> str:
    held = one.candidate.mesh.tokens_per_group
    group = "one group" if held is None else f"{held:,} tokens a group"
    return f"{one.candidate}, {group}: {one.reason}"
