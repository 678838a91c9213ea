"""Every policy under loads, mixes and troubles: `python -m benchmarks.policies --seconds 1800 --seed 101 --seed 102`.

Simulated, on 16 A100 whose time model the scheduler has, but where a condition says otherwise. Counts are of
requests: late short ones, long ones on time (`max(1.5 x alone, 0.5 s)`). A policy is marked where no other has fewer
late short ones, and where no other has more long ones on time; what was counted goes to `--out`.

With slices and without (`--chunks-only`), requests and deadlines are the same: they follow from the seconds alone in
chunks that leave decodes their target.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from medha_jax.config import POLICIES, SchedulerConfig
from medha_jax.results.metrics import on_time, waited
from medha_jax.simulate.deployments import DEPLOYMENTS, Deployment
from medha_jax.simulate.simulation import alone, simulate
from medha_jax.simulate.summaries import percentiles, tpots
from medha_jax.workload import WorkloadConfig, WorkloadRequest, build_offered, preset_of
from medha_jax.workload.arrivals import due_times

SETTINGS = SchedulerConfig(max_waiting=2**31)
MACHINE = DEPLOYMENTS["a100-16"]


@dataclass(frozen=True)
class Condition:
    """What a policy has to live with.

    Args:
        load: seconds of isolated prefill that arrive in a second.
        mix: percentage of long requests.
        pool: part of the KV pool that there is.
        burstiness: shape of gamma-distributed gaps between arrivals; 1 for a Poisson process.
        slowed: times as long as predicted that every tick takes.
        drained: whether everything is served, or nothing after the last arrival.
    """

    load: float
    mix: str = "5"
    pool: float = 1.0
    burstiness: float = 1.0
    slowed: float = 1.0
    drained: bool = True

    def __str__(self) -> str:
        """What is not as usual."""
        told = [f"load {self.load:g}"]
        told += [f"{self.mix} % long"] if self.mix != "5" else []
        told += [f"{self.pool:g} of the pool"] if self.pool != 1 else []
        told += [f"bursts (gamma, shape {self.burstiness:g})"] if self.burstiness != 1 else []
        told += [f"ticks take {self.slowed:g} x what is predicted"] if self.slowed != 1 else []
        told += [] if self.drained else ["not drained"]
        return ", ".join(told)


GRIDS = {
    "loads": tuple(Condition(load) for load in (0.5, 0.75, 0.9, 1.0, 1.2)),
    "troubles": (
        Condition(0.9, mix="0"),
        Condition(1.2, mix="0"),
        Condition(0.9, mix="1"),
        Condition(1.2, mix="1"),
        Condition(0.9, pool=0.25),
        Condition(1.2, pool=0.25),
        Condition(0.9, burstiness=0.25),
        Condition(0.75, slowed=1.25),
        Condition(1.5, drained=False),
    ),
}


@dataclass(frozen=True)
class Count:
    """What a policy did to the requests of one simulation. Times are in seconds.

    Args:
        long_in_twice: long requests with a first token within twice the time to their deadline.
        longest_wait: for a first token, to the end where it lasts.
        short_ttft: P50 and P99.
        tpot: P50 and P99.
        longest: tick or slice.
    """

    condition: str
    seed: int
    policy: str
    short: int
    short_late: int
    long: int
    long_on_time: int
    long_in_twice: int
    longest_wait: float
    short_ttft: tuple[float, ...]
    tpot: tuple[float, ...]
    longest: float


def main() -> None:
    """Simulate some at a time, print each as it comes, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", choices=tuple(GRIDS), action="append", help="may be repeated; all, if none is named")
    parser.add_argument("--seed", type=int, action="append", help="of lengths and arrivals; 101, if none is named")
    parser.add_argument("--seconds", type=float, default=3600, help="in which requests come")
    parser.add_argument("--policy", choices=POLICIES, action="append", help="may be repeated; all, if none is named")
    parser.add_argument("--chunks-only", action="store_true", help="a machine without slices")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    conditions = [one for grid in given.grid or GRIDS for one in GRIDS[grid]]
    counts: list[Count] = []
    machine = MACHINE.chunks_only if given.chunks_only else MACHINE
    policies = given.policy or POLICIES
    for one in counted(conditions, given.seed or [101], given.seconds, given.processes, machine, policies):
        counts.append(one)
        print(f"{len(counts)}: {one}", flush=True)
    print("\n".join(table(counts)))
    if given.out:
        given.out.write_text(json.dumps([asdict(one) for one in counts], indent=1) + "\n", encoding="utf-8")


def counted(
    conditions: Sequence[Condition],
    seeds: Sequence[int],
    seconds: float,
    processes: int,
    machine: Deployment = MACHINE,
    policies: Sequence[str] = POLICIES,
) -> Iterator[Count]:
    """Every policy under every condition and seed, in this order."""
    rows = [(one, seed, policy, seconds, machine) for one in conditions for seed in seeds for policy in policies]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield from pool.map(count, *zip(*rows, strict=True))


def count(condition: Condition, seed: int, policy: str, seconds: float, machine: Deployment = MACHINE) -> Count:
    """One simulation."""
    work = alone(MACHINE.chunks_only, SETTINGS)
    arrivals = arriving(condition, seed, seconds, work)
    outcome = simulate(
        with_pool(machine, condition.pool),
        replace(SETTINGS, policy=policy),
        arrivals,
        until=None if condition.drained else seconds,
        isolated=work,
        slowed=lambda at, seconds, shape: condition.slowed * seconds,
    )
    # whose deadline lies beyond the end was neither late nor on time
    judged = [(one.kind, kept) for one in outcome.records if (kept := on_time(one)) is not None]
    short, long = ([kept for of, kept in judged if of == kind] for kind in ("short", "long"))
    everybody = outcome.records
    first = [waited(one) for one in everybody if one.kind == "short"]
    twice = [waited(one) <= 2 * (one.deadline_s or 0) for one in everybody if one.kind == "long"]
    return Count(
        condition=str(condition),
        seed=seed,
        policy=policy,
        short=len(short),
        short_late=sum(not kept for kept in short),
        long=len(long),
        long_on_time=sum(long),
        long_in_twice=sum(twice),
        longest_wait=max(map(waited, everybody), default=0.0),
        short_ttft=percentiles(first, (50, 99)) or (),
        tpot=percentiles(tpots(everybody), (50, 99)) or (),
        longest=outcome.totals.longest,
    )


def arriving(
    condition: Condition, seed: int, seconds: float, work: Callable[[int], float]
) -> tuple[WorkloadRequest, ...]:
    """The requests of a condition; bursts are the same requests with other gaps between them, in as many seconds."""
    workload = WorkloadConfig(source=preset_of(condition.mix), duration=seconds, seed=seed)
    requests = build_offered(workload, condition.load, work).requests
    if condition.burstiness == 1:
        return requests
    process = WorkloadConfig(process="gamma", num_requests=len(requests) + 1)
    *times, end = due_times(process, condition.burstiness, np.random.default_rng(seed)).tolist()
    return tuple(replace(one, at=at * seconds / end) for one, at in zip(requests, times, strict=True))


def with_pool(machine: Deployment, part: float) -> Deployment:
    """A machine with a part of its KV pool."""
    pool = machine.config.pool_tokens
    assert pool is not None
    return replace(machine, config=replace(machine.config, pool_tokens=int(pool * part)))


def table(counts: Sequence[Count]) -> Iterator[str]:
    """Seeds added up, policies beside each other: late short ones / long ones on time / longest wait."""
    policies = list(dict.fromkeys(one.policy for one in counts))
    yield "\n| condition | short | long | " + " | ".join(policies) + " |"
    yield "|---" * (3 + len(policies)) + "|"
    for condition in dict.fromkeys(one.condition for one in counts):
        of = {policy: [c for c in counts if (c.condition, c.policy) == (condition, policy)] for policy in policies}
        late = {policy: sum(one.short_late for one in mine) for policy, mine in of.items()}
        good = {policy: sum(one.long_on_time for one in mine) for policy, mine in of.items()}
        cells = (
            f"{_best(late[policy], min(late.values()))} / {_best(good[policy], max(good.values()))} / "
            f"{max(one.longest_wait for one in of[policy]):,.0f} s"
            for policy in policies
        )
        # not drained, policies judge different requests: the most that one of them did
        short, long = (max(sum(getattr(c, kind) for c in mine) for mine in of.values()) for kind in ("short", "long"))
        yield f"| {condition} | {short:,} | {long} | " + " | ".join(cells) + " |"
    yield "\nlate short requests / long ones on time / longest wait; **bold** where no policy is better"


def _best(value: int, best: int) -> str:
    return f"**{value}**" if value == best else str(value)


if __name__ == "__main__":
    main()
