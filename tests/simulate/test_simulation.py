from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from medha_jax.config import POLICIES, SchedulerConfig
from medha_jax.results import RequestRecord
from medha_jax.results.metrics import e2el, on_time, tpot, waited
from medha_jax.scheduler.time_model import FEATURES, LinearTimeModel
from medha_jax.simulate.deployments import DEPLOYMENTS, LAYERS, SLICE_S, Deployment
from medha_jax.simulate.simulated_records import record_of
from medha_jax.simulate.simulation import Outcome, alone, simulate
from medha_jax.simulate.summaries import isolated_seconds, summarise, summarise_convoy
from medha_jax.workload import (
    ConvoyConfig,
    WorkloadConfig,
    WorkloadRequest,
    build,
    build_convoy,
    build_offered,
    load_mix,
)
from tests.simulate.simulated import request

MACHINE = DEPLOYMENTS["a100-16"]
TARGET_S = SchedulerConfig().tpot_target_s


def offered(load: float, seconds: float, seed: int) -> tuple[WorkloadRequest, ...]:
    """As much work of Medha's mix."""
    config = WorkloadConfig(source="medha-5pct", duration=seconds, seed=seed)
    return build_offered(config, load, MACHINE.isolated_prefill).requests


def on(stages: int, chunk: int = 2048, deployment: Deployment = MACHINE) -> Deployment:
    """The machine with another number of stages, and chunks of one size."""
    config = deployment.config
    buckets = dataclasses.replace(config.mesh.buckets, prefill=(chunk,))
    mesh = dataclasses.replace(config.mesh, spp=stages, buckets=buckets)
    return dataclasses.replace(deployment, config=dataclasses.replace(config, mesh=mesh))


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("prompt", [2048, 20_480, 30_000])
def test_a_lone_request_takes_what_it_takes_alone(stages: int, prompt: int) -> None:
    machine = on(stages).chunks_only
    outcome = simulate(machine, SchedulerConfig(idle_tick_s=10, tpot_target_s=10), [request(3.0, prompt, 5)])
    (served,) = outcome.records
    assert waited(served) == pytest.approx(machine.isolated_prefill(prompt))
    assert e2el(served) == pytest.approx(isolated_seconds(served, machine))
    # N + spp − 1 ticks, then as many as there are stages for every further token
    assert outcome.totals.ticks == -(-prompt // 2048) + stages - 1 + 4 * stages


@pytest.mark.parametrize("prompt", [30_000, 1_000_000])
@pytest.mark.parametrize("policy", ["lars", "red"])
def test_a_lone_prompt_in_slices_is_fast_and_a_newcomer_waits_for_none_of_it(prompt: int, policy: str) -> None:
    outcome = simulate(MACHINE, SchedulerConfig(policy=policy), [request(3.0, prompt, 5)])
    (served,) = outcome.records
    assert waited(served) <= 1.05 * MACHINE.isolated_prefill(prompt)
    assert outcome.totals.longest <= 0.05
    assert outcome.totals.tokens == prompt + 4


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "fcfs"])
def test_a_newcomer_is_served_while_a_long_prompt_runs_in_slices(policy: str) -> None:
    """The long one begins in ticks and goes on in slices; no request decodes when the others come."""
    requests = [request(0.0, 300_000, 5), request(8.0, 500, 5), request(9.0, 6_000, 5)]
    long, *short = simulate(MACHINE, SchedulerConfig(policy=policy), requests).records
    assert max(map(waited, short)) < 0.5
    assert waited(long) < 1.1 * MACHINE.isolated_prefill(300_000)


@pytest.mark.parametrize("policy", ["lars", "red"])
def test_prompts_of_some_thousand_tokens_do_not_queue_for_the_slices_of_a_long_one(policy: str) -> None:
    """At its end, all layers of a chunk of the long prompt take half a second."""
    lengths = (5_656, 7_048, 6_914, 3_261, 3_227, 2_722, 1_187)
    requests = [request(140.0 + 1.3 * place, length, 200) for place, length in enumerate(lengths)]
    long, *short = simulate(MACHINE, SchedulerConfig(policy=policy), [request(0.0, 1_000_000, 5), *requests]).records
    assert max(map(waited, short)) < 0.5
    assert on_time(long)


@pytest.mark.parametrize("policy", ["lars", "red"])
def test_two_long_prompts_take_turns_in_slices(policy: str) -> None:
    """Neither runs in small chunks of ticks while the other is in the lane, though none counts as `long`."""
    config = SchedulerConfig(policy=policy, long_tokens=2**30)
    outcome = simulate(MACHINE, config, [request(0.0, 300_000, 5), request(0.0, 300_000, 5)])
    assert outcome.totals.ticks < 60
    assert max(map(waited, outcome.records)) < 1.1 * 2 * MACHINE.isolated_prefill(300_000)


def test_a_machine_may_be_slow_for_a_while() -> None:
    settings, lone = SchedulerConfig(idle_tick_s=10, tpot_target_s=10), [request(0.0, 20_480, 5)]
    (alone,) = simulate(MACHINE, settings, lone).records
    (slow,) = simulate(MACHINE, settings, lone, slowed=lambda at, seconds, shape: 2 * seconds).records
    assert waited(slow) == pytest.approx(2 * waited(alone))
    (later,) = simulate(MACHINE, settings, lone, slowed=lambda at, seconds, shape: seconds * (2 - (at < 0.1))).records
    assert waited(alone) < waited(later) < waited(slow)


def test_more_of_the_machine_is_never_slower_end_to_end() -> None:
    """A lone request on a machine that takes half the time for one kind of work."""
    base = MACHINE.model
    assert isinstance(base, LinearTimeModel)
    (before,) = simulate(MACHINE, SchedulerConfig(), [request(0.0, 100_000, 50)]).records
    for name in FEATURES:
        better = dataclasses.replace(base, **{name: getattr(base, name) / 2}).per_layer(LAYERS, SLICE_S)
        (after,) = simulate(
            dataclasses.replace(MACHINE, model=better), SchedulerConfig(), [request(0.0, 100_000, 50)]
        ).records
        assert waited(after) <= waited(before)
        assert (e2el(after) or 0) <= (e2el(before) or 0)


def test_what_is_simulated_is_the_work_of_the_requests() -> None:
    arrivals = build(WorkloadConfig(source="medha-1pct", rate=1.0, duration=30, seed=4)).requests
    outcome = simulate(MACHINE, SchedulerConfig(preemption=False), arrivals)
    assert all(one.status == "ok" for one in outcome.records)
    # the last token is never fed
    lengths = [one.length + one.output_tokens - 1 for one in arrivals]
    assert outcome.totals.tokens == sum(lengths)
    assert outcome.totals.attention == pytest.approx(sum(n * (n + 1) / 2 for n in lengths))


def test_a_seed_fixes_everything() -> None:
    def run(seed: int) -> Outcome:
        return simulate(MACHINE, SchedulerConfig(), offered(0.9, 10, seed))

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize("policy", ["lars", "red"])
def test_no_request_waits_behind_a_convoy(policy: str) -> None:
    """The claim at its smallest: against prompts that run to their end, the short ones wait 30 times less."""
    arrivals = build_convoy(
        ConvoyConfig(
            long_prompt=1_000_000, long_output=64, shorts=200, short_prompt=100, short_prompt_most=2000, short_output=64
        )
    ).requests
    settings = SchedulerConfig()
    whole = dataclasses.replace(settings, policy="fcfs", chunk_preemption=False)
    before = summarise_convoy("fcfs", simulate(MACHINE, whole, arrivals), MACHINE)
    settings = dataclasses.replace(settings, policy=policy)
    after = summarise_convoy(policy, simulate(MACHINE, settings, arrivals), MACHINE)
    assert before.short_ttft[0] > 30 * after.short_ttft[0]
    assert after.short_tpot[1] <= TARGET_S
    assert after.long_finished is not None
    assert after.long_finished <= 1.1 * after.long_bound


def test_overload_starves_long_prompts_under_srtf_and_not_under_lars() -> None:
    """Half again as much work as the machine can do, for as long as it takes to serve some fifty long prompts.

    A model of the hour of docs/scheduling.md: prompts of a third of the length, and more of the long ones, for 15
    minutes; outputs of two tokens, which make few ticks.
    """
    rng, work, seconds = np.random.default_rng(0), alone(MACHINE, SchedulerConfig()), 900
    prompts, _, long = dataclasses.replace(load_mix("5"), long_share=0.3).at(rng.random((2000, 3)))
    prompts = np.rint(np.where(long, prompts / 3, prompts)).astype(int)
    count = int(np.searchsorted(np.cumsum([work(prompt) for prompt in prompts.tolist()]), 1.5 * seconds))
    times = np.sort(rng.random(count)) * seconds
    arrivals = [request(at, prompt, 2) for at, prompt in zip(times.tolist(), prompts.tolist(), strict=False)]
    begun = {}
    for policy in ("srtf", "lars"):
        served = simulate(MACHINE, SchedulerConfig(policy=policy), arrivals, until=900).records
        early = sorted((one for one in served if one.due < 200), key=lambda one: -one.prompt_tokens)
        begun[policy] = [len(one.outputs) > 0 for one in early]
    assert not any(begun["srtf"][:3])
    assert all(begun["lars"])


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_serves_everything(policy: str) -> None:
    arrivals = offered(1.2, 10, 3)
    outcome = simulate(MACHINE, SchedulerConfig(policy=policy), arrivals)
    summary = summarise(policy, outcome, 10)
    assert summary.finished == summary.requests == len(arrivals)
    assert summary.longest_wait < outcome.end


def test_it_stops_when_it_is_told_and_jumps_over_idle_time() -> None:
    arrivals = [request(0.0, 100, 2), request(1e6, 100, 2), request(2e6, 100, 2)]
    outcome = simulate(MACHINE, SchedulerConfig(), arrivals, until=1.5e6)
    assert [one.status for one in outcome.records] == ["ok", "ok"]
    assert 1.5e6 <= outcome.end < 2.1e6
    assert outcome.totals.seconds < 1


def test_no_device_is_touched() -> None:
    code = (
        "from medha_jax.config import SchedulerConfig\n"
        "from medha_jax.simulate.deployments import DEPLOYMENTS\n"
        "from medha_jax.simulate.simulation import simulate\n"
        "from medha_jax.workload import WorkloadRequest\n"
        "simulate(DEPLOYMENTS['a100-16'], SchedulerConfig(), [WorkloadRequest(0, 0.0, 'short', 100, 2)])\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def served(at: float, first: float | None, end: float, prompt: int = 2048, output: int = 3) -> RequestRecord:
    asked = request(at, prompt, output, "long" if prompt > 10_000 else "short")
    alone_s = MACHINE.isolated_prefill(prompt)
    finished = None if first is None else first + 1.0
    return record_of(0, asked, SchedulerConfig().default_deadline_s(alone_s), alone_s, first, finished, end)


def test_figures_of_a_request() -> None:
    one = served(10.0, 10.4, 20.0)
    assert waited(one) == pytest.approx(0.4)
    assert tpot(one) == pytest.approx(0.5)
    assert e2el(one) == pytest.approx(1.4)
    assert on_time(one) is True
    assert on_time(served(10.0, 10.6, 20.0)) is False
    assert on_time(served(10.0, None, 20.0)) is False
    assert on_time(served(19.8, None, 20.0)) is None  # may still come in time
    assert tpot(served(19.8, None, 20.0)) is None


def test_a_summary_counts_who_was_on_time_and_who_was_done() -> None:
    rows = (
        served(0.0, 0.2, 100.0),
        served(1.0, 3.0, 100.0),
        served(2.0, 40.0, 100.0, prompt=100_000),
        served(3.0, None, 100.0, prompt=100_000),
    )
    totals = dataclasses.replace(simulate(MACHINE, SchedulerConfig(), []).totals, tokens=500)
    summary = summarise("lars", Outcome(rows, 100.0, totals), arriving=10.0)
    assert (summary.requests, summary.finished) == (4, 3)
    assert (summary.on_time_short, summary.on_time_long) == (0.5, 0.0)
    assert summary.throughput == 0.2  # the third was done after 10 s
    assert summary.tokens_per_second == 5
    assert summary.longest_wait == 97
    assert summary.normalised is not None
    assert summary.normalised[0] == pytest.approx(np.median([waited(row) / row.alone_s for row in rows]))
    assert summary.load == pytest.approx(sum(row.alone_s for row in rows) / 10)
