"""Whoever goes gives back pages, slot and place in the queue within two ticks, wherever it was."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from medha_jax.config import SchedulerConfig
from medha_jax.engine import Engine, Failed, NewTokens, Slo
from medha_jax.runtime import MeshExecutor
from medha_jax.text import Tokenizer
from tests.engine.serving import ask, engine_of
from tests.scheduler.serving import pending_work
from tests.small import small_executor

PHASES = ("queued", "prefill", "pipeline", "decode")


@pytest.fixture(scope="module")
def runtimes() -> dict[int, MeshExecutor]:
    return {stages: small_executor(spp=stages, pool_tokens=512) for stages in (1, 2)}


def reach(engine: Engine, phase: str, stages: int, **stated: Any) -> tuple[int, dict[str, int]]:
    """A request in a phase of its life, and what is free when it has gone."""
    if phase == "queued":  # behind one that has all pages
        engine.add(ask(1, 200, 312))
        engine.step()
    before = gauges(engine)
    number = engine.add(ask(2, 200, 100, **stated))
    if phase == "queued":
        engine.step()
        before = {**before, "free": sum(engine.load.free_pages)}
    else:
        for _ in range(1000):
            events = engine.step()
            state = engine.scheduler.state(number)
            if phase == "prefill" and 0 < state.computed < 200:
                break
            if phase == "pipeline" and state.in_flight:
                break
            if phase == "decode" and any(isinstance(event, NewTokens) for _, event in events):
                break
        else:
            raise AssertionError("never there")
    return number, before


def gauges(engine: Engine) -> dict[str, int]:
    scheduler = engine.scheduler
    return {
        "free": sum(engine.load.free_pages),
        "running": scheduler.stats.running,
        "waiting": scheduler.stats.waiting,
        "tokens": scheduler.stats.waiting_tokens,
        "work": sum(pending_work(scheduler)) if scheduler.stats.running == 0 else 0,
    }


CASES = [
    (phase, stages, ahead)
    for phase, stages, ahead in itertools.product(PHASES, (1, 2), (0, 1))
    if phase != "pipeline" or stages + ahead > 1
]


@pytest.mark.parametrize(("phase", "stages", "ahead"), CASES)
def test_a_cancelled_request_is_gone_within_two_ticks(
    phase: str, stages: int, ahead: int, runtimes: dict[int, MeshExecutor], byte_tokenizer: Tokenizer
) -> None:
    config = SchedulerConfig(prefix_cache=False, preemption=False)
    engine = engine_of(runtimes[stages], byte_tokenizer, config, lambda: 0.0, ahead)
    number, before = reach(engine, phase, stages)
    assert gauges(engine) != before
    engine.cancel(number)
    for _ in range(2):
        assert all(of != number for of, _ in engine.step())
    assert gauges(engine) == before
    finish(engine)


@pytest.mark.parametrize(("phase", "stages", "ahead"), CASES)
def test_a_request_past_its_deadline_is_gone_within_two_ticks(
    phase: str, stages: int, ahead: int, runtimes: dict[int, MeshExecutor], byte_tokenizer: Tokenizer
) -> None:
    now = 0.0
    config = SchedulerConfig(prefix_cache=False, preemption=False)
    engine = engine_of(runtimes[stages], byte_tokenizer, config, lambda: now, ahead)
    number, before = reach(engine, phase, stages, deadline_s=10.0, on_deadline="drop")
    now = 10.1
    events = [event for _ in range(2) for event in engine.step()]
    assert (number, Failed("deadline", "the deadline has passed")) in events
    assert [of for of, _ in events].count(number) == 1
    assert gauges(engine) == before
    finish(engine)


def test_a_request_that_is_late_in_two_ways_ends_once(
    runtimes: dict[int, MeshExecutor], byte_tokenizer: Tokenizer
) -> None:
    now = 0.0
    engine = engine_of(runtimes[1], byte_tokenizer, SchedulerConfig(), lambda: now)
    number = engine.add(ask(2, 200, 100, slo=Slo(ttft_s=5.0), deadline_s=10.0, on_deadline="drop"))
    now = 11.0
    assert engine.step() == [(number, Failed("deadline", "the deadline has passed"))]
    assert not engine.busy


def finish(engine: Engine) -> None:
    """Cancel what is left, and let it leave the pipeline."""
    for number in list(engine._generations):
        engine.cancel(number)
    while engine.busy:
        engine.step()
    assert gauges(engine) == {"free": 32, "running": 0, "waiting": 0, "tokens": 0, "work": 0}
