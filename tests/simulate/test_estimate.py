"""Figures of a layout in closed form."""

from __future__ import annotations

import dataclasses
import math

import pytest

from medha_jax.simulate.estimate import Estimator, Targets
from medha_jax.simulate.hardware import load_hardware
from medha_jax.simulate.layouts import Candidate, Feasible, candidates, look_at
from medha_jax.simulate.named_models import load_model
from medha_jax.workload import WorkloadConfig, build

CONTEXT = 2**17
H100, LLAMA = load_hardware("h100"), load_model("llama3-8b")
SAMPLE = build(WorkloadConfig(source="medha-5pct", rate=1.0, duration=100)).requests


def estimator(decode: tuple[int, ...]) -> Estimator:
    """Of a layout on one device with these decode sizes."""
    (one,) = candidates(1, CONTEXT, H100)
    buckets = dataclasses.replace(one.mesh.buckets, decode=decode)
    candidate = Candidate(dataclasses.replace(one.mesh, buckets=buckets), 1, 1)
    found = look_at(candidate, LLAMA, H100, "bfloat16", CONTEXT, 128)
    assert isinstance(found, Feasible), found
    return Estimator(found, H100, CONTEXT, Targets(), 128)


@pytest.mark.parametrize("decode", [(64,), (0, 64)])
def test_with_one_decode_size_every_tick_has_its_rows_already(decode: tuple[int, ...]) -> None:
    one, two = (estimator(sizes).estimate(SAMPLE) for sizes in (decode, (63, 64)))
    assert 0 < one.goodput_per_s <= one.requests_per_s < math.inf
    assert one.requests_per_s == pytest.approx(two.requests_per_s, rel=0.05)
    assert one.tpot_s == pytest.approx(two.tpot_s, rel=0.05)
