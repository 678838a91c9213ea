from __future__ import annotations

import dataclasses

import pytest

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.plan import Admission, Chunk, SamplingParams, StepPlan
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.simulate.clock import VirtualClock
from medha_jax.simulate.executor import SimulatedExecutor
from medha_jax.simulate.held_chunks import SimulationError
from medha_jax.simulate.times import SummedTimes
from medha_jax.specs.buckets import UnknownShapeError

BUCKETS = Buckets(decode=(1, 4), prefill=(8, 32), chunks=2, slices=())
MODEL = LinearTimeModel(fixed=1.0, tokens=0.1, attention=0.001, context=0.01, rows=0.5)


def executor(clock: VirtualClock, model: LinearTimeModel = MODEL, **mesh: int) -> SimulatedExecutor:
    config = RuntimeConfig(
        mesh=MeshConfig(page_size=4, buckets=BUCKETS, shared_buckets=BUCKETS, **mesh), slots=4, pool_tokens=256
    )
    return SimulatedExecutor(config, 128, SummedTimes(model), clock)


def admit(runtime: SimulatedExecutor, *slots: int) -> None:
    for slot in slots:
        runtime.admit(Admission(slot, SamplingParams(), 1))


def test_a_tick_takes_what_its_rows_and_their_context_take() -> None:
    clock = VirtualClock()
    runtime = executor(clock)
    admit(runtime, 0, 1)
    plan = StepPlan((Chunk(0, 0, 6, (1,) * 6, False), Chunk(1, 10, 1, None, True)))
    handle = runtime.submit(plan)
    assert clock() == 0
    results = runtime.collect(handle)
    assert handle.leaving is plan
    assert len(results) == 2
    # 1 + 8 rows with padding; 1 + 2 + … + 6 = 21; 6 + 11 tokens read; 2 sampled
    assert clock() == pytest.approx(1.0 + 0.1 * 9 + 0.001 * 21 + 0.01 * 17 + 0.5 * 2)
    assert runtime.totals.tokens == 7
    assert runtime.totals.attention == 21 + 11


def test_plans_leave_after_every_stage_and_the_slowest_stage_sets_the_pace() -> None:
    clock = VirtualClock()
    runtime = executor(clock, LinearTimeModel(fixed=1.0, tokens=0.1, context=1.0), spp=3)
    admit(runtime, 0)
    lengths = (32, 4, 8)
    plans, at = [], 0
    for length in lengths:
        plans.append(StepPlan((Chunk(0, at, length, (1,) * length, False),)))
        at += length
    empty = StepPlan(())
    times, left = [], []
    for plan in (*plans, empty, empty):
        handle = runtime.submit(plan)
        before = clock()
        runtime.collect(handle)
        times.append(clock() - before)
        left.append(handle.leaving)
    assert left == [empty, empty, *plans]  # N + spp − 1 ticks
    largest = [33, 33, 33, 9, 9]  # 1 + the largest padded chunk in the pipeline
    longest = [32, 36, 44, 44, 44]
    assert times == pytest.approx([1 + 0.1 * rows + read for rows, read in zip(largest, longest, strict=True)])


def test_ticks_that_nobody_collects_take_their_time_too() -> None:
    clock = VirtualClock()
    runtime = executor(clock, LinearTimeModel(fixed=1.0), spp=2)
    admit(runtime, 0)
    runtime.submit(StepPlan((Chunk(0, 0, 4, (1,) * 4, True),)))
    runtime.collect(runtime.submit(StepPlan(())))
    assert clock() == 2.0


def test_groups_work_side_by_side_and_meet_in_shared_rows() -> None:
    clock = VirtualClock()
    runtime = executor(clock, LinearTimeModel(context=1.0), kvp=2, tokens_per_group=16)
    admit(runtime, 0, 1, 2)
    own = Chunk(0, 0, 4, (1,) * 4, False), Chunk(1, 0, 8, (1,) * 8, False, groups=(1,))
    runtime.collect(runtime.submit(StepPlan(own)))
    assert clock() == 8.0
    # the first group of a spread request holds 16 tokens and computes one of its own beside
    shared = Chunk(2, 16, 4, (1,) * 4, False, groups=(0, 1)), Chunk(0, 4, 1, (1,), False)
    runtime.collect(runtime.submit(StepPlan(shared)))
    assert clock() == 8.0 + 16 + 5
    tokens = executor(clock, LinearTimeModel(tokens=1.0), kvp=2, tokens_per_group=16)
    admit(tokens, 0, 2)
    start = clock()
    tokens.collect(tokens.submit(StepPlan(shared[:1])))
    assert clock() == start + (1 + 0) + (1 + 8)


def test_what_no_runtime_could_do_is_an_error() -> None:
    runtime = executor(VirtualClock())
    admit(runtime, 0, 1, 2)
    with pytest.raises(UnknownShapeError, match="beyond the compiled shapes"):
        runtime.submit(StepPlan((Chunk(0, 0, 33, (1,) * 33, True),)))
    with pytest.raises(UnknownShapeError, match="beyond the compiled shapes"):
        runtime.submit(StepPlan(tuple(Chunk(slot, 0, 2, (1, 1), True) for slot in (0, 1, 2))))
    assert runtime.totals.ticks == 0
    runtime.submit(StepPlan((Chunk(0, 0, 4, (1,) * 4, False),)))
    with pytest.raises(SimulationError, match="slot 0 is at 4 tokens; a chunk came that starts at 8"):
        runtime.submit(StepPlan((Chunk(0, 8, 4, (1,) * 4, False),)))
    runtime.adopt(1, 0, (3, 4))
    runtime.submit(StepPlan((Chunk(1, 8, 4, (1,) * 4, False),)))
    with pytest.raises(SimulationError, match="starts at 0"):
        runtime.submit(StepPlan((Chunk(3, 0, 4, (1,) * 4, False),)))


def test_sizes_are_those_of_a_runtime() -> None:
    one = executor(VirtualClock()).sizes
    assert (one.context, one.pages, one.per_group) == (128, 64, 2**30)
    four = executor(VirtualClock(), kvp=4, tokens_per_group=16)
    assert (four.sizes.context, four.sizes.pages, four.sizes.per_group) == (64, 64, 16)
    config = dataclasses.replace(four.config, pool_tokens=None)
    assert SimulatedExecutor(config, 128, SummedTimes(MODEL), VirtualClock()).sizes.pages == 4
