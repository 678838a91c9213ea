"""The first ticks of a machine are measured until the time model can predict, however slow the machine is."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from medha_jax.engine import Engine, scheduler_for
from medha_jax.engine.loading import measure_ticks
from medha_jax.engine.output import text_outputs
from medha_jax.runtime import MeshExecutor
from medha_jax.scheduler.time_model import LEAST_TICKS, FittedTimeModel, TickWork
from medha_jax.text import Tokenizer
from tests.engine.serving import CONFIG


@pytest.mark.parametrize(("second", "enough"), [(0.01, True), (0.1, True), (100.0, False)])
def test_no_tick_seems_to_be_free_after_a_first_start(
    second: float, enough: bool, executor: MeshExecutor, byte_tokenizer: Tokenizer
) -> None:
    """Every look at the clock takes `second` seconds."""
    times, clock = FittedTimeModel({}), itertools.count(0.0, second).__next__
    scheduler = scheduler_for(executor, dataclasses.replace(CONFIG, prefix_cache=False), times)
    engine = Engine(executor, scheduler, times, clock, text_outputs(byte_tokenizer))
    measure_ticks(engine, executor, clock, times)
    assert times.ticks > 0 and (times.ticks >= LEAST_TICKS) == enough
    assert times.seconds(TickWork(tokens=8, context=100.0, rows=1)) > 0
    assert not engine.busy
