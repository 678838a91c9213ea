from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.config import SchedulerConfig, load_mesh
from medha_jax.results.group import group_of
from medha_jax.results.metrics import tpot, waited
from medha_jax.simulate.deployments import deploy
from medha_jax.simulate.estimate import Estimate, Estimator, Targets, mark_front
from medha_jax.simulate.hardware import load_hardware
from medha_jax.simulate.layouts import Candidate, Feasible, Refused, candidates, layout_yaml, look_at
from medha_jax.simulate.named_models import load_model
from medha_jax.simulate.simulation import simulate
from medha_jax.workload import WorkloadConfig, build

H100, LLAMA = load_hardware("h100"), load_model("llama3-8b")
SAMPLE = build(WorkloadConfig(source="medha-5pct", rate=1.0, duration=100)).requests


def feasible(tp: int, spp: int, kvp: int, spread: int, context: int) -> Feasible:
    for candidate in candidates(tp * spp * kvp, context, H100):
        mesh = candidate.mesh
        if (mesh.tp, mesh.spp, mesh.kvp, candidate.spread) == (tp, spp, kvp, spread):
            found = look_at(candidate, LLAMA, H100, "bfloat16", context, 128)
            assert isinstance(found, Feasible), found
            return found
    raise AssertionError("no such candidate")


def estimator(tp: int, spp: int, kvp: int, spread: int, context: int) -> Estimator:
    return Estimator(feasible(tp, spp, kvp, spread, context), H100, context, Targets(), 128)


def test_every_layout_of_the_devices_is_looked_at_once() -> None:
    found = list(candidates(8, 2**20, H100))
    axes = [(one.mesh.tp, one.mesh.spp, one.mesh.kvp, one.mesh.tokens_per_group) for one in found]
    assert len(set(axes)) == len(axes)
    assert all(one.replicas * one.mesh.tp * one.mesh.spp * one.mesh.kvp == 8 for one in found)
    # twenty divisions of 1, 2, 4 and 8 devices; kvp = 2^n comes with n + 1 sizes of a group
    assert len({axis[:3] for axis in axes}) == 1 + 3 + 6 + 10
    assert len(axes) == sum(kvp.bit_length() for *_, kvp in {axis[:3] for axis in axes})
    for one in found:
        if one.mesh.tokens_per_group is not None:
            assert one.spread * one.mesh.tokens_per_group >= 2**20
            assert one.mesh.tokens_per_group % one.mesh.page_size == 0


def test_what_cannot_be_says_why() -> None:
    reasons = {
        (one.candidate.mesh.tp, one.candidate.mesh.spp, one.candidate.spread): one.reason
        for candidate in candidates(64, 10 * 2**20, H100)
        if isinstance(one := look_at(candidate, LLAMA, H100, "bfloat16", 10 * 2**20, 128), Refused)
    }
    assert reasons[64, 1, 1] == "heads 32 is not divisible by tp=64"
    assert reasons[1, 64, 1] == "spp=64 is more than 32 layers"
    assert reasons[1, 1, 8].startswith("1,310,720 tokens of KV a group need 160.0 GiB a device")
    large = load_model("llama3-405b")
    (one,) = candidates(1, 1024, H100)
    refused = look_at(one, large, H100, "bfloat16", 1024, 128)
    assert isinstance(refused, Refused)
    assert "of weights and state do not fit 67.1 GiB" in refused.reason


@pytest.mark.parametrize("axes", [(8, 1, 1, 1), (4, 2, 1, 1), (2, 2, 2, 2), (1, 2, 4, 1)], ids=str)
def test_a_written_layout_is_read_back(axes: tuple[int, ...], tmp_path: Path) -> None:
    mesh = feasible(*axes, context=2**18).candidate.mesh
    path = tmp_path / "layout.yaml"
    path.write_text(layout_yaml(mesh, "chosen for a test, " * 12), encoding="utf-8")
    read = load_mesh(str(path))
    wanted = mesh if mesh.shared_buckets is not None else dataclasses.replace(mesh, shared_buckets=read.shared_buckets)
    assert read == wanted
    assert all(len(line) <= 120 for line in path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("axes", [(8, 1, 1, 1), (8, 2, 1, 1), (4, 1, 2, 2)], ids=str)
def test_estimates_of_a_lone_request_are_what_the_simulator_says(axes: tuple[int, ...]) -> None:
    """The scheduler chooses chunks itself there, so a few per cent are between them."""
    context, prompt = 2**19, 500_000
    estimated = estimator(*axes, context=context)
    machine = deploy(estimated.cost, context, 128, "llama3-8b")
    arrival = dataclasses.replace(SAMPLE[0], at=0.0, prompt_tokens=prompt, output_tokens=20)
    (served,) = simulate(machine, SchedulerConfig(), [arrival]).records
    assert estimated.ttft(prompt) == pytest.approx(waited(served), rel=0.05)
    assert estimated.tpot(prompt) == pytest.approx(tpot(served), rel=0.05)


def test_estimated_capacity_is_near_what_the_simulator_can_serve() -> None:
    estimated = estimator(8, 1, 1, 1, 2**20)
    capacity = estimated.estimate(SAMPLE).requests_per_s
    machine = deploy(estimated.cost, 2**20, 128, "llama3-8b")
    seconds, done = 400, []
    for share in (0.5, 2.0):
        workload = WorkloadConfig(source="medha-5pct", rate=share * capacity, duration=seconds)
        outcome = simulate(machine, SchedulerConfig(policy="srtf"), build(workload).requests, until=seconds)
        # at half the capacity, those that come last still have no time to be served when it ends
        counted = [one for one in outcome.records if share > 1 or one.due < seconds / 2]
        work = sum(one.prompt_tokens**2 for one in counted if one.outputs)
        done.append(work / sum(one.prompt_tokens**2 for one in counted))
    assert done[0] > 0.8
    assert done[1] < 0.75
    assert group_of(outcome.records).judged > 0


def test_traffic_scales_with_replicas_and_costs_what_devices_cost() -> None:
    one = estimator(4, 1, 1, 1, 2**17).estimate(SAMPLE)
    two = dataclasses.replace(feasible(4, 1, 1, 1, 2**17), candidate=Candidate(one.candidate.mesh, 2, 1))
    twice = Estimator(two, H100, 2**17, Targets(), 128).estimate(SAMPLE)
    assert twice.requests_per_s == pytest.approx(2 * one.requests_per_s)
    assert twice.goodput_per_s == pytest.approx(2 * one.goodput_per_s)
    assert twice.usd_per_million == pytest.approx(one.usd_per_million)
    assert one.usd_per_million == pytest.approx(4 * H100.price / 3600 / one.tokens_per_s * 1e6)
    assert 0 < one.goodput_per_s < one.requests_per_s


def test_a_target_that_ticks_cannot_keep_leaves_nothing() -> None:
    strict = dataclasses.replace(estimator(1, 1, 1, 1, 2**15), targets=Targets(tpot_s=0.001))
    found = strict.estimate(SAMPLE)
    assert (found.requests_per_s, found.goodput_per_s, found.usd_per_million) == (0, 0, None)
    late = dataclasses.replace(estimator(8, 1, 1, 1, 2**15), targets=Targets(ttft_s=1e-3))
    assert late.estimate(SAMPLE).goodput_per_s == 0


figures = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


@given(st.lists(figures, min_size=1, max_size=12))
@settings(max_examples=60)
def test_nobody_on_the_front_is_beaten_and_everybody_else_is(triples: list[tuple[int, int, int]]) -> None:
    room = feasible(8, 1, 1, 1, 2**15).room
    candidate = next(iter(candidates(8, 2**15, H100)))
    estimates = [Estimate(candidate, room, ttft, tpot, 1, 1, goodput, 1) for ttft, tpot, goodput in triples]

    def beats(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a[2] >= b[2] and a != b

    assert mark_front(estimates) == [not any(beats(other, mine) for other in triples) for mine in triples]


def test_more_stages_do_not_slow_a_long_prompt_down() -> None:
    times = [estimator(8, stages, 1, 1, 2**20).ttft(2**20) for stages in (1, 2, 4, 8)]
    assert np.all(np.diff(times) < 0)
    assert times[0] / times[3] > 6
