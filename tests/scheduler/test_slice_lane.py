"""Chunks in the slice lane: their lengths, their layers, their way over the stages, and what is dropped."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.config import Buckets, SchedulerConfig
from medha_jax.plan import Chunk
from medha_jax.scheduler.request import RequestState, SchedulerRequest
from medha_jax.scheduler.slice_lane import SliceLane
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.specs.tick_shapes import TickShapes

SIZES = Buckets(decode=(4,), prefill=(8,), slices=(16, 64, 256))
MODEL = LinearTimeModel(fixed=1e-4, tokens=1e-5, attention=1e-9, context=1e-8, rows=1e-4)


def shapes(stages: int = 1, groups: int = 1, lengths: tuple[int, ...] = (1, 2, 3, 4)) -> TickShapes:
    return TickShapes(SIZES, SIZES, groups, 2**20, 4, stages, 8, 2**20, lengths)


def state(number: int) -> RequestState:
    made = RequestState.new(number, SchedulerRequest(range(10_000), 1, 0.0), SchedulerConfig())
    made.in_flight = 1  # its chunk in the lane
    return made


def chunk(slot: int, start: int = 0, length: int = 64, groups: tuple[int, ...] = (0,)) -> Chunk:
    return Chunk(slot, start, length, tuple(range(length)), False, groups=groups)


def test_the_length_reads_its_context_seldom_enough() -> None:
    """Near the start short chunks do as well as long ones; behind a million tokens only the longest does."""
    lane = SliceLane(shapes(), LinearTimeModel(tokens=1e-5, context=1e-7))
    assert lane.length(0, 10_000)[0] == 16
    assert lane.length(10**6, 10_000)[0] == 256


def test_a_chunk_is_shorter_where_one_of_its_layers_would_take_long() -> None:
    """The same costs a token, two thousand times slower: others would wait for seconds."""
    quick, slow = (LinearTimeModel(attention=1e-9 * factor, context=1e-9 * factor) for factor in (0.05, 100))
    assert SliceLane(shapes(), quick).length(10**6, 10_000)[0] == 256
    assert SliceLane(shapes(), slow).length(10**6, 10_000)[0] == 16


def test_the_last_chunk_is_as_long_as_what_is_left() -> None:
    lane = SliceLane(shapes(), LinearTimeModel())
    assert lane.length(0, 100)[0] == 100
    assert lane.length(0, 1)[0] == 0
    assert SliceLane(dataclasses.replace(shapes(), own=Buckets(slices=())), MODEL).length(0, 100)[0] == 0


def test_layers_fit_the_time_and_what_is_left_of_the_round() -> None:
    lane = SliceLane(shapes(lengths=(1, 2, 4)), LinearTimeModel(rows=0.01))
    lane.enter(state(0), chunk(0), 0.0, 0.0)
    assert [lane.layers_within(seconds) for seconds in (0.005, 0.01, 0.035, 0.04, 9)] == [0, 1, 2, 4, 4]
    lane.advance(1)
    assert lane.layers_within(9) == 2, "three layers are left, and no slice has three"


def test_lengths_vary_until_times_are_known() -> None:
    lane = SliceLane(shapes(), LinearTimeModel())
    lane.enter(state(0), chunk(0), 0.0, 0.0)
    seen = []
    while lane.busy:
        seen.append(lane.layers_within(0.05))
        lane.advance(seen[-1])
    assert seen == [2, 1, 1]


@given(st.data())
@settings(max_examples=60)
def test_chunks_pass_the_stages_one_round_after_the_other(data: st.DataObject) -> None:
    """N chunks are done after N + stages - 1 rounds, in order, whatever the lengths of the slices."""
    stages = data.draw(st.sampled_from([1, 2, 4]))
    count = data.draw(st.integers(1, 5))
    lane, mine, left, rounds, entered, worked = SliceLane(shapes(stages), MODEL), state(0), [], 0, 0, 0.0
    while len(left) < count:
        if lane.between_rounds:
            rounds += 1
            if entered < count:
                lane.enter(mine, chunk(0, 64 * entered), 0.5, work=7.0)
                entered += 1
        step = lane.advance(data.draw(st.sampled_from([n for n in (1, 2, 3, 4) if lane.layers_within(9) >= n])))
        held = [[one.start // 64 for one in plan.chunks] for plan in step.slice.stages]
        assert held == [[n] if 0 <= (n := rounds - 1 - stage) < count else [] for stage in range(stages)]
        assert step.seconds == pytest.approx(MODEL.seconds(step.work))
        left += step.slice.stages[-1].chunks if step.leaving else ()
        worked += sum(step.worked)
        whole = lane.seconds(4)
        assert lane.left(mine) == pytest.approx(whole * (entered + stages - rounds - step.slice.past / 4))
    assert worked == pytest.approx(7.0 * count), "once, in the first stage"
    assert [one.start // 64 for one in left] == list(range(count))
    assert rounds == count + stages - 1
    assert not lane.busy


def test_what_is_dropped_is_not_in_flight_and_the_others_go_on() -> None:
    lane, first, second = SliceLane(shapes(groups=2), MODEL), state(0), state(1)
    lane.enter(first, chunk(0, groups=(0,)), 0.0, 0.0)
    lane.enter(second, chunk(1, groups=(1,)), 0.0, 0.0)
    lane.advance(1)
    lane.drop(first)
    assert (first.in_flight, second.in_flight) == (0, 1)
    step = lane.advance(3)
    assert (step.slice.first, step.slice.past, step.leaving) == (1, 4, (second,))
    assert [one.slot for one in step.slice.stages[0].chunks] == [1]


def test_a_chunk_behind_a_long_context_waits_until_the_chunks_of_others_have_left() -> None:
    """All stages run the same layers in lockstep, so the short prompt's chunk would wait for the long one's."""
    lane, short, long = SliceLane(shapes(stages=2), LinearTimeModel(attention=1e-9)), state(0), state(1)
    assert not lane.slows(long, 10**6, 64), "nobody is there"
    lane.enter(short, chunk(0), 0.0, 0.0)
    lane.advance(4)
    assert lane.slows(long, 10**6, 64)
    assert not lane.slows(long, 0, 64), "it is as short"
    assert not lane.slows(short, 10**6, 64), "its own"
    lane.advance(4)
    assert not lane.slows(long, 10**6, 64)


def test_a_round_ends_with_its_last_chunk() -> None:
    lane, mine = SliceLane(shapes(stages=2), MODEL), state(0)
    lane.enter(mine, chunk(0), 0.0, 0.0)
    lane.advance(3)
    lane.drop(mine)
    assert lane.between_rounds and not lane.busy and not mine.in_flight
    lane.drop(mine)
    assert not mine.in_flight
