from __future__ import annotations

import dataclasses
import itertools

import pytest

from medha_jax.config import Buckets, MeshConfig, load_mesh
from medha_jax.plan import Admission, Chunk, SamplingParams, Slice, StepPlan
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.simulate.clock import VirtualClock
from medha_jax.simulate.cost import CostModel
from medha_jax.simulate.deployments import DEPLOYMENTS, FIT, Deployment, deploy, modelled, slice_lengths
from medha_jax.simulate.hardware import load_hardware
from medha_jax.simulate.named_models import load_model
from medha_jax.simulate.simulation import executor_of

# seconds to the first token, 8B on 16 A100, as the paper's authors measured them
PUBLISHED = {2: 0.067, 8: 0.201, 32: 0.748, 64: 1.70, 128: 4.50, 256: 13.84, 512: 47.2, 768: 100.7, 1024: 175.5}
every = pytest.mark.parametrize("deployment", DEPLOYMENTS.values(), ids=DEPLOYMENTS)


@every
@pytest.mark.parametrize("kilo", PUBLISHED)
def test_a_prompt_alone_takes_what_was_published(deployment: Deployment, kilo: int) -> None:
    seconds = deployment.isolated_prefill(1024 * kilo)
    assert seconds == pytest.approx(PUBLISHED[kilo], rel=0.07)
    constant, linear, square = FIT
    assert seconds == pytest.approx(constant + linear * 1024 * kilo + square * (1024 * kilo) ** 2, rel=0.05)


@pytest.mark.parametrize(("kilo", "seconds"), [(1, 0.0075), (256, 0.054), (512, 0.094), (1024, 0.187)])
def test_a_token_of_output_takes_what_was_published(kilo: int, seconds: float) -> None:
    model = DEPLOYMENTS["a100-16-slow-kv"].model
    assert isinstance(model, LinearTimeModel)
    assert 2 * (model.fixed + model.tokens + model.context * 1024 * kilo) == pytest.approx(seconds, rel=0.05)


@every
def test_a_prompt_alone_in_closed_form(deployment: Deployment) -> None:
    """On one stage every chunk is a tick, and sums of the numbers 1 to N stand for them."""
    mesh = dataclasses.replace(deployment.config.mesh, spp=1)
    one = dataclasses.replace(deployment, config=dataclasses.replace(deployment.config, mesh=mesh))
    model = one.model
    assert isinstance(model, LinearTimeModel)
    chunks, prompt = 10, 10 * 2048
    ticks = chunks * (model.fixed + model.tokens * (1 + 2048))
    attention = model.attention * prompt * (prompt + 1) / 2
    read = model.context * 2048 * chunks * (chunks + 1) / 2
    assert one.isolated_prefill(prompt) == pytest.approx(ticks + attention + read)
    # one token more is a decode row
    row = model.fixed + model.tokens + model.context * (prompt + 1)
    assert one.isolated_prefill(prompt + 1) == pytest.approx(ticks + attention + read + row)


@pytest.mark.parametrize("layout", [{}, {"tp": 2, "spp": 4}, {"kvp": 2, "tokens_per_group": 16384}])
@pytest.mark.parametrize("prompt", [100, 2048, 2049, 6000, 20_480, 20_490])
def test_the_best_alone_may_be_in_slices(layout: dict[str, int], prompt: int) -> None:
    """The executor takes these seconds for slices of all layers and a tick for the rest."""
    buckets = Buckets(decode=(1,), prefill=(128,), slices=(256, 2048), chunks=1)
    shared = dataclasses.replace(buckets, slices=(1024,))  # another size: predictions know shapes by their rows
    mesh = MeshConfig(buckets=buckets, shared_buckets=shared, **layout)
    machine = deploy(CostModel.of(load_model("llama3-8b"), mesh, load_hardware("b200")), 32768, 1, "llama3-8b")
    runtime, stages = executor_of(machine, VirtualClock()), mesh.spp
    runtime.admit(Admission(0, SamplingParams(), prompt))
    size = 2048 if prompt <= machine.shapes.per_group else 1024
    rest = (prompt - 1) % size + 1
    rest = rest if rest <= 128 else 1

    def chunk(start: int, past: int, last: bool = False) -> StepPlan:
        groups = (0, 1) if start >= machine.shapes.per_group else (0,)
        return StepPlan((Chunk(0, start, past - start, (1,) * (past - start), last, groups=groups),))

    nothing = (StepPlan(()),) * (stages - 1)
    starts = [*range(0, min(prompt - rest, 16384), 2048), *range(16384, prompt - rest, size)]
    chunks = [chunk(start, past) for start, past in itertools.pairwise((*starts, prompt - rest))]
    flight = StepPlan(()), *nothing
    for entering in (*chunks, *nothing) if chunks else ():
        flight = entering, *flight[:-1]
        runtime.submit_slice(Slice(flight, 0, machine.shapes.layers))
    for entering in (chunk(prompt - rest, prompt, last=True), *nothing):
        runtime.submit(entering)
    in_ticks = machine.chunks_only.isolated_prefill(prompt)
    assert machine.isolated_prefill(prompt) == pytest.approx(min(in_ticks, runtime.totals.seconds))


def test_slices_have_lengths_that_a_runtime_has() -> None:
    assert slice_lengths(5, "cpu") == (1, 2, 3, 4, 5)
    assert slice_lengths(5, "h100") == (1, 2, 5)
    assert slice_lengths(16, "a100") == (1, 4, 16)
    assert slice_lengths(126, "b200") == (1, 8, 32, 126)


@pytest.mark.parametrize("rows", [None, 256])
def test_what_is_not_modelled_is_said(rows: int | None) -> None:
    layout = dataclasses.replace(load_mesh("dgx-h100-8"), overlap_rows=rows)
    assert ("overlap_rows is not modelled" in modelled("llama3-8b", layout, 2**17, 128).about) == (rows is not None)
