from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from medha_jax.config import POLICIES, SchedulerConfig
from medha_jax.scheduler.time_model import FEATURES, LinearTimeModel
from medha_jax.simulate.deployments import DEPLOYMENTS, Deployment
from medha_jax.simulate.report import isolated_seconds, summarise, summarise_convoy
from medha_jax.simulate.run import Outcome, Served, alone, simulate
from medha_jax.workload import Arrival, Lengths, Mix, Quantiles, convoy, load_mix

MACHINE = DEPLOYMENTS["a100-16"]
TARGET_S = SchedulerConfig().tpot_target_s


def on(stages: int, chunk: int = 2048, deployment: Deployment = MACHINE) -> Deployment:
    """The machine with another number of stages, and chunks of one size."""
    config = deployment.config
    buckets = dataclasses.replace(config.mesh.buckets, prefill=(chunk,))
    mesh = dataclasses.replace(config.mesh, spp=stages, buckets=buckets)
    return dataclasses.replace(deployment, config=dataclasses.replace(config, mesh=mesh))


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("prompt", [2048, 20_480, 30_000])
def test_a_lone_request_takes_what_it_takes_alone(stages: int, prompt: int) -> None:
    machine = on(stages)
    outcome = simulate(machine, SchedulerConfig(idle_tick_s=10, tpot_target_s=10), [Arrival(3.0, prompt, 5)])
    (served,) = outcome.served
    assert served.first is not None
    assert served.ttft == pytest.approx(machine.isolated_prefill(prompt))
    assert served.e2e == pytest.approx(isolated_seconds(served, machine))
    # N + spp − 1 ticks, then as many as there are stages for every further token
    assert outcome.totals.ticks == -(-prompt // 2048) + stages - 1 + 4 * stages


def test_a_machine_may_be_slow_for_a_while() -> None:
    settings, lone = SchedulerConfig(idle_tick_s=10, tpot_target_s=10), [Arrival(0.0, 20_480, 5)]
    (alone,) = simulate(MACHINE, settings, lone).served
    (slow,) = simulate(MACHINE, settings, lone, slowed=lambda at, seconds, shape: 2 * seconds).served
    assert slow.ttft == pytest.approx(2 * alone.ttft)
    (later,) = simulate(MACHINE, settings, lone, slowed=lambda at, seconds, shape: seconds * (2 - (at < 0.1))).served
    assert alone.ttft < later.ttft < slow.ttft


def test_more_of_the_machine_is_never_slower_end_to_end() -> None:
    """A lone request on a machine that takes half the time for one kind of work."""
    base = MACHINE.model
    assert isinstance(base, LinearTimeModel)
    (before,) = simulate(MACHINE, SchedulerConfig(), [Arrival(0.0, 100_000, 50)]).served
    for name in FEATURES:
        better = dataclasses.replace(base, **{name: getattr(base, name) / 2})
        (after,) = simulate(
            dataclasses.replace(MACHINE, model=better), SchedulerConfig(), [Arrival(0.0, 100_000, 50)]
        ).served
        assert after.ttft <= before.ttft
        assert (after.e2e or 0) <= (before.e2e or 0)


def test_what_is_simulated_is_the_work_of_the_requests() -> None:
    arrivals = load_mix("1").poisson(1.0, 30, seed=4)
    outcome = simulate(MACHINE, SchedulerConfig(preemption=False), arrivals)
    assert all(served.finished is not None for served in outcome.served)
    # the last token is never fed
    lengths = [arrival.prompt + arrival.output - 1 for arrival in arrivals]
    assert outcome.totals.tokens == sum(lengths)
    assert outcome.totals.attention == pytest.approx(sum(n * (n + 1) / 2 for n in lengths))


def test_a_seed_fixes_everything() -> None:
    def run(seed: int) -> Outcome:
        return simulate(MACHINE, SchedulerConfig(), load_mix("5").offered(0.9, 10, seed, MACHINE.isolated_prefill))

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize("policy", ["lars", "red"])
def test_no_request_waits_behind_a_convoy(policy: str) -> None:
    """The claim at its smallest: against prompts that run to their end, the short ones wait 30 times less."""
    arrivals = convoy(200, seed=0)
    settings = SchedulerConfig()
    whole = dataclasses.replace(settings, policy="fcfs", chunk_preemption=False)
    before = summarise_convoy("fcfs", simulate(MACHINE, whole, arrivals), MACHINE)
    settings = dataclasses.replace(settings, policy=policy)
    after = summarise_convoy(policy, simulate(MACHINE, settings, arrivals), MACHINE)
    assert before.short_ttft[0] > 30 * after.short_ttft[0]
    assert after.short_tpot[1] <= TARGET_S
    assert after.long_finished is not None
    assert after.long_finished <= 1.1 * after.long_bound


def scaled(quantiles: Quantiles, by: float) -> Quantiles:
    return Quantiles(quantiles.probabilities, tuple(by * value for value in quantiles.values))


def test_overload_starves_long_prompts_under_srtf_and_not_under_lars() -> None:
    """Half again as much work as the machine can do, for as long as it takes to serve some fifty long prompts.

    A model of the hour of docs/scheduling.md: prompts of a third of the length, and more of the long ones, for 15
    minutes; outputs of two tokens, which make few ticks.
    """
    mix = load_mix("5")
    assert mix.long is not None
    two = Quantiles((0, 1), (2, 2))
    smaller = Mix(Lengths(mix.short.prompt, two), Lengths(scaled(mix.long.prompt, 1 / 3), two), long_share=0.3)
    arrivals = smaller.offered(1.5, 900, 2, alone(MACHINE, SchedulerConfig()))
    begun = {}
    for policy in ("srtf", "lars"):
        served = simulate(MACHINE, SchedulerConfig(policy=policy), arrivals, until=900).served
        early = sorted((one for one in served if one.arrival.at < 200), key=lambda one: -one.arrival.prompt)
        begun[policy] = [one.first is not None for one in early]
    assert not any(begun["srtf"][:3])
    assert all(begun["lars"])


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_serves_everything(policy: str) -> None:
    arrivals = load_mix("5").offered(1.2, 10, 3, MACHINE.isolated_prefill)
    outcome = simulate(MACHINE, SchedulerConfig(policy=policy), arrivals)
    summary = summarise(policy, outcome, 10)
    assert summary.finished == summary.requests == len(arrivals)
    assert summary.longest_wait < outcome.end


def test_it_stops_when_it_is_told_and_jumps_over_idle_time() -> None:
    arrivals = [Arrival(0.0, 100, 2), Arrival(1e6, 100, 2), Arrival(2e6, 100, 2)]
    outcome = simulate(MACHINE, SchedulerConfig(), arrivals, until=1.5e6)
    assert [one.finished is not None for one in outcome.served] == [True, True]
    assert 1.5e6 <= outcome.end < 2.1e6
    assert outcome.totals.seconds < 1


def test_no_device_is_touched() -> None:
    code = (
        "from medha_jax.config import SchedulerConfig\n"
        "from medha_jax.simulate.deployments import DEPLOYMENTS\n"
        "from medha_jax.simulate.run import simulate\n"
        "from medha_jax.workload import Arrival\n"
        "simulate(DEPLOYMENTS['a100-16'], SchedulerConfig(), [Arrival(0.0, 100, 2)])\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def served(at: float, first: float | None, end: float, prompt: int = 2048, output: int = 3) -> Served:
    finished = None if first is None else first + 1.0
    return Served(Arrival(at, prompt, output, prompt > 10_000), MACHINE.isolated_prefill(prompt), first, finished, end)


def test_figures_of_a_request() -> None:
    one = served(10.0, 10.4, 20.0)
    assert one.ttft == pytest.approx(0.4)
    assert one.normalised == pytest.approx(0.4 / MACHINE.isolated_prefill(2048))
    assert one.tpot == pytest.approx(0.5)
    assert one.e2e == pytest.approx(1.4)
    assert one.on_time is True
    assert served(10.0, 10.6, 20.0).on_time is False
    assert served(10.0, None, 20.0).on_time is False
    assert served(19.8, None, 20.0).on_time is None  # may still come in time
    assert served(19.8, None, 20.0).tpot is None


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
    assert summary.normalised[0] == pytest.approx(np.median([row.normalised for row in rows]))
    assert summary.load == pytest.approx(sum(row.isolated for row in rows) / 10)
