"""Slices beside chunks only and layered prefill: `python -m research.slices convoy`, `… mix --load 0.9 --seed 101`.

Every figure is simulated on `a100-16`; `floor` is a closed form. Requests and deadlines are the same in every row; they
follow from the seconds alone in chunks that leave decodes their target.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from medha_jax.config import SchedulerConfig
from medha_jax.results.metrics import on_time, waited
from medha_jax.scheduler.time_model import TickWork
from medha_jax.simulate.deployments import CHUNK, DEPLOYMENTS, SLICE_S, Deployment
from medha_jax.simulate.simulation import Outcome, alone, simulate
from medha_jax.simulate.summaries import percentiles, tpots
from medha_jax.specs.buckets import smallest_size
from medha_jax.specs.chunk_work import chunk_attention
from medha_jax.specs.sizes import UNBOUNDED
from medha_jax.workload import ConvoyConfig, WorkloadConfig, WorkloadRequest, build_convoy, build_offered, preset_of
from research.baselines.layered import simulate_layered

MACHINE = DEPLOYMENTS["a100-16"]
SETTINGS = SchedulerConfig(max_waiting=2**31)
GROUPS = (4, 8, 16)
CONVOY = ConvoyConfig(
    long_prompt=1_000_000, long_output=64, shorts=200, short_prompt=100, short_prompt_most=2000, short_output=64
)
Alone = Callable[[int], float]


@dataclass(frozen=True)
class Floor:
    """About the least seconds to the first token of a convoy's long prompt, if decodes get their target.

    Args:
        best: with nobody else, in the largest chunks.
        two_lanes: ticks for the decodes as seldom as their target allows, the short prompts once, the rest for slices.
        riding: the same, if the long prompt's rows ride along in the ticks' layers, so that weights are read once.
    """

    best: float
    two_lanes: float
    riding: float


def floor(machine: Deployment, requests: Sequence[WorkloadRequest], decodes: int) -> Floor:
    """The floor of a convoy whose first request is the long one, with about `decodes` requests that decode.

    A second has `1 / tick` ticks with decodes. A short prompt's rows are computed by each stage in turn, and all stages
    run their shape. Overheads of slices are left out of `riding`, and counted once a round in `two_lanes`. Short
    prompts that share a tick are not foreseen, so a schedule may be half a per cent faster.
    """
    mesh, model = machine.config.mesh, machine.model
    long, *short = requests
    best, tick = machine.isolated_prefill(long.length), SETTINGS.tpot_target_s / mesh.spp
    rows = smallest_size(mesh.buckets.decode, -(-decodes // mesh.spp))
    busy = model.seconds(TickWork(rows)) / tick
    prompts = 0.0
    for one in short:
        padded = smallest_size(mesh.buckets.prefill, min(one.length, CHUNK))
        squares = chunk_attention(0, one.length, UNBOUNDED)
        more = model.seconds(TickWork(padded, squares, one.length)) - model.seconds(TickWork(0))
        prompts += mesh.spp * more
    shorts_s = prompts / (short[-1].at - short[0].at + 1)  # seconds of work that come in a second
    rounds = -(-long.length // CHUNK) + mesh.spp - 1
    free = 1 - busy - shorts_s
    return Floor(
        best=best,
        two_lanes=(best + rounds * SLICE_S) / free,
        riding=(best - rounds * model.seconds(TickWork(0))) / free,
    )


def outcomes(requests: Sequence[WorkloadRequest], work: Alone, policy: str) -> Iterator[tuple[str, Outcome]]:
    """What each system does with the same requests, by its name."""
    settings = replace(SETTINGS, policy=policy)
    yield f"{policy}, chunks only", simulate(MACHINE.chunks_only, settings, requests, isolated=work)
    yield f"{policy}, slices", simulate(MACHINE, settings, requests, isolated=work)
    for groups in GROUPS:
        yield f"layered, {groups} groups a stage", simulate_layered(MACHINE, requests, groups, work)


def row(name: str, outcome: Outcome) -> str:
    """One line of a table."""
    short = [one for one in outcome.records if one.kind == "short"]
    long = [one for one in outcome.records if one.kind == "long"]
    ttft, each = percentiles(list(map(waited, short)), (50, 99)), percentiles(tpots(short), (50, 99, 100))
    assert ttft is not None and each is not None
    return " | ".join(
        (
            f"| {name}",
            f"{ttft[0]:.3f} / {ttft[1]:.3f} s",
            " / ".join(f"{1000 * value:.1f}" for value in each) + " ms",
            f"{1000 * outcome.totals.longest:.0f} ms",
            f"{sum(not on_time(one) for one in short)} of {len(short):,}",
            f"{sum(bool(on_time(one)) for one in long)} of {len(long)}",
            f"{max(map(waited, long), default=0.0):,.1f} s",
            f"{outcome.end:,.1f} s |",
        )
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("convoy", "mix", "floor"))
    parser.add_argument("--load", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--policy", default="red")
    given = parser.parse_args()
    work, requests = alone(MACHINE.chunks_only, SETTINGS), build_convoy(CONVOY).requests
    if given.what == "floor":
        print(floor(MACHINE, requests, round(CONVOY.short_output * SETTINGS.tpot_target_s / CONVOY.interval)))
        return
    if given.what == "mix":
        config = WorkloadConfig(source=preset_of("5"), duration=given.seconds, seed=given.seed)
        requests = build_offered(config, given.load, work).requests
    heads = "short TTFT P50 / P99", "short TPOT P50 / P99 / most", "longest", "short late", "long on time", "long wait"
    print(f"| | {' | '.join(heads)} | end |")
    print("|---" * 8 + "|")
    for name, outcome in outcomes(requests, work, given.policy):
        print(row(name, outcome), flush=True)


if __name__ == "__main__":
    main()
