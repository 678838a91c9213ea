from __future__ import annotations

import dataclasses

import pytest

from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.simulate.deployments import DEPLOYMENTS, FIT, Deployment

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
