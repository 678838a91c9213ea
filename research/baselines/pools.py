"""Machines divided into pools: prefill apart from decode, or short prompts apart from long ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from medha_jax.config import SchedulerConfig
from medha_jax.simulate.cost import CostModel
from medha_jax.simulate.deployments import Deployment
from medha_jax.simulate.executor import Totals
from medha_jax.simulate.simulated_records import record_of
from medha_jax.simulate.simulation import Outcome, simulate
from medha_jax.simulate.times import GroupWork
from medha_jax.specs.buckets import Bucket, Segment
from medha_jax.workload import WorkloadRequest
from research.baselines.decoding import DecodePool, Decoding

FOREVER = float("inf")


def simulate_split(
    prefill: Deployment,
    decode: Deployment,
    cost: CostModel,
    settings: SchedulerConfig,
    arrivals: Sequence[WorkloadRequest],
    isolated: Callable[[int], float],
    until: float | None = None,
) -> Outcome:
    """Prompts on one machine, output on another; the network carries the KV between them.

    The first token comes with the prompt. The next one waits until the KV has been sent and the decode pool has room.
    Every device of the decode pool receives its part over its own link; sending costs neither pool any time.

    Args:
        prefill, decode: machines of the prompts and of the output.
        cost: of the decode machine.
        settings: of the prefill machine's scheduler.
        isolated: seconds of a prompt alone, for deadlines.
        until: seconds at which to stop.
    """
    ones = [dataclasses.replace(arrival, output_tokens=1) for arrival in arrivals]
    prompts = simulate(prefill, settings, ones, until, isolated=isolated)
    sending = cost.sizes.kv_token_bytes / (cost.used.link * cost.hardware.far.bandwidth)
    stages = decode.config.mesh.spp

    def round_seconds(count: int, context: float) -> float:
        """A token for every request: each stage runs its part of the requests in its own tick."""
        rows = -(-count // stages)
        return stages * cost.group_seconds(Bucket(Segment(rows)), GroupWork(context=context / stages, rows=rows))

    pool = DecodePool(round_seconds, decode.config.pool_tokens or decode.context, decode.config.slots)
    finished: list[float | None] = [None] * len(prompts.records)
    ready = sorted(
        (one.outputs[0][0] + sending * one.prompt_tokens, number)
        for number, one in enumerate(prompts.records)
        if one.outputs
    )
    last = FOREVER if until is None else until
    for at, number in ready:
        for done, moment in pool.run(min(at, last)):
            finished[done] = moment
        arrival = arrivals[number]
        if arrival.output_tokens == 1:
            finished[number] = prompts.records[number].outputs[0][0]
        else:
            pool.add(Decoding(number, arrival.length + 1, arrival.output_tokens - 1))
    for done, moment in pool.run(last):
        finished[done] = moment
    end = max(prompts.end, pool.now) if until is None else last
    records = tuple(
        record_of(
            number,
            arrivals[number],
            one.deadline_s or 0.0,
            one.alone_s or 0.0,
            one.outputs[0][0] if one.outputs else None,
            done,
            end,
        )
        for number, (one, done) in enumerate(zip(prompts.records, finished, strict=True))
    )
    return Outcome(records, end, prompts.totals)


def simulate_apart(
    short: Deployment,
    long: Deployment,
    settings: SchedulerConfig,
    arrivals: Sequence[WorkloadRequest],
    isolated: Callable[[int], float],
    border: int = 65536,
    until: float | None = None,
) -> Outcome:
    """Short prompts, below `border` tokens, on one machine and long ones on another, regardless of their loads.

    `isolated` gives the seconds of a prompt alone, from which deadlines follow. The simulation stops at `until`.
    """
    kinds = [one for one in arrivals if one.length < border], [one for one in arrivals if one.length >= border]
    parts = [
        simulate(machine, settings, requests, until, isolated=isolated)
        for machine, requests in zip((short, long), kinds, strict=True)
    ]
    end = max(part.end for part in parts)
    records = [
        dataclasses.replace(one, ended=end if one.status == "unfinished" else one.ended)
        for part in parts
        for one in part.records
    ]
    totals = Totals(*(sum(getattr(part.totals, field.name) for part in parts) for field in dataclasses.fields(Totals)))
    return Outcome(tuple(sorted(records, key=lambda one: one.due)), end, totals)
