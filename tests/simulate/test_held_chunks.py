from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.plan import Admission, Chunk, SamplingParams, Slice, StepPlan
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.simulate.clock import VirtualClock
from medha_jax.simulate.executor import UNSAMPLED, SimulatedExecutor
from medha_jax.simulate.held_chunks import NO_PLAN, SimulationError
from medha_jax.simulate.times import SummedTimes
from medha_jax.specs.buckets import UnknownShapeError

BUCKETS = Buckets(decode=(1, 4), prefill=(8, 32), slices=(16, 64), chunks=2)
LAYERS, LENGTHS = 4, (1, 2, 4)
# seconds for each row of a layer, tokens² of it, token read by it; 0.5 for each layer and 0.25 for a slice
MODEL = LinearTimeModel(fixed=2.0, tokens=0.4, attention=0.004, context=0.04).per_layer(LAYERS, 0.25)


def executor(clock: VirtualClock, model: LinearTimeModel = MODEL, **mesh: int) -> SimulatedExecutor:
    config = RuntimeConfig(
        mesh=MeshConfig(page_size=4, buckets=BUCKETS, shared_buckets=BUCKETS, **mesh), slots=4, pool_tokens=1024
    )
    found = SimulatedExecutor(config, 512, SummedTimes(model), clock, slice_lengths=LENGTHS)
    for slot in range(4):
        admit(found, slot)
    return found


def admit(runtime: SimulatedExecutor, slot: int) -> None:
    runtime.admit(Admission(slot, SamplingParams(), 1))


def chunk(slot: int, start: int, length: int, groups: tuple[int, ...] = (0,)) -> Chunk:
    return Chunk(slot, start, length, (1,) * length, False, groups=groups)


def plan(*chunks: Chunk) -> StepPlan:
    return StepPlan(chunks)


def test_a_slice_takes_what_its_layers_take() -> None:
    clock = VirtualClock()
    runtime = executor(clock)
    one = plan(chunk(0, 0, 10))
    assert runtime.collect(runtime.submit_slice(Slice((one,), 0, 2))) == []
    # two layers of 16 rows; 1 + 2 + … + 10 = 55 tokens²; 10 tokens read
    assert clock() == pytest.approx(0.25 + 2 * (0.5 + 0.1 * 16 + 0.001 * 55 + 0.01 * 10))
    assert runtime.collect(runtime.submit_slice(Slice((one,), 2, 4))) == [UNSAMPLED]
    totals = runtime.totals
    assert (totals.slices, totals.ticks, totals.tokens, totals.attention) == (2, 0, 10, 55)
    assert totals.seconds == totals.slice_seconds == clock()
    assert totals.longest == pytest.approx(clock() / 2)
    # the request goes on in either lane
    runtime.submit(plan(chunk(0, 10, 4)))
    assert totals.ticks == 1
    assert totals.seconds > totals.slice_seconds


@pytest.mark.parametrize("between", [False, True])
def test_chunks_of_a_lone_prompt_fill_the_pipeline(between: bool) -> None:
    """N chunks are done after N + stages - 1 rounds, and ticks in between change nothing."""
    clock = VirtualClock()
    runtime = executor(clock, spp=3)
    chunks = [plan(chunk(0, 16 * number, 16)) for number in range(5)]
    flight, results = (NO_PLAN,) * 3, []
    for entering in (*chunks, NO_PLAN, NO_PLAN):
        flight = entering, *flight[:-1]
        for first in (0, 1, 3):
            if first != 3:
                handle = runtime.submit_slice(Slice(flight, first, {0: 1, 1: 3}[first]))
            else:
                handle = runtime.submit_slice(Slice(flight, 3, 4))
            results += runtime.collect(handle)
            if between:
                runtime.collect(runtime.submit(plan(chunk(1, runtime.totals.ticks * 4, 4))))
    assert len(results) == 5
    assert runtime.totals.slices == 3 * (5 + 3 - 1)


def test_groups_have_a_chunk_each_beside_a_shared_one() -> None:
    clock = VirtualClock()
    model = LinearTimeModel(context=4.0).per_layer(LAYERS, 0.0)
    runtime = executor(clock, model, kvp=2, tokens_per_group=64)
    own = chunk(0, 0, 10), chunk(1, 0, 30, (1,))
    runtime.collect(runtime.submit_slice(Slice((plan(*own),), 0, 4)))
    assert clock() == 4 * 30
    shared = chunk(2, 64, 8, (0, 1))
    runtime.collect(runtime.submit_slice(Slice((plan(chunk(1, 30, 4, (1,)), shared),), 0, 4)))
    # the first group of the spread request holds 64 tokens; the other one computes 4 of its own beside
    assert clock() == 4 * 30 + 4 * (64 + 34)


A, B, C = chunk(0, 0, 16), chunk(0, 16, 16), chunk(1, 0, 16)
REFUSED: list[tuple[str, list[Slice], type[Exception], str]] = [
    ("gap", [Slice((plan(A), NO_PLAN), 0, 1), Slice((plan(A), NO_PLAN), 2, 4)], SimulationError, "begins at layer 2"),
    ("middle", [Slice((plan(A), NO_PLAN), 1, 2)], SimulationError, "begins at layer 1; 0 layers"),
    ("length", [Slice((plan(A), NO_PLAN), 0, 3)], SimulationError, r"layers \[0, 3\) came"),
    ("beyond", [Slice((plan(A), NO_PLAN), 0, 4), Slice((plan(B), plan(A)), 0, 8)], SimulationError, r"\[0, 8\)"),
    ("stages", [Slice((plan(A),), 0, 4)], SimulationError, "plans of 1 stages; there are 2"),
    ("empty", [Slice((NO_PLAN, NO_PLAN), 0, 4)], SimulationError, "without chunks"),
    ("new", [Slice((plan(A), NO_PLAN), 0, 1), Slice((plan(C), NO_PLAN), 1, 2)], SimulationError, "does not hold"),
    ("jump", [Slice((NO_PLAN, plan(A)), 0, 4)], SimulationError, "stage 1 does not hold the chunk of slot 0"),
    ("again", [Slice((plan(A), NO_PLAN), 0, 1), Slice((plan(C), plan(A)), 0, 1)], SimulationError, "does not hold"),
    ("order", [Slice((plan(B), NO_PLAN), 0, 4), Slice((plan(A), plan(B)), 0, 4)], SimulationError, "is at 32 tokens"),
    ("twice", [Slice((plan(A, B), NO_PLAN), 0, 4)], SimulationError, "two chunks of one request"),
    ("two", [Slice((plan(A, C), NO_PLAN), 0, 4)], SimulationError, "more than one chunk of a group"),
    ("one", [Slice((plan(chunk(0, 0, 1)), NO_PLAN), 0, 4)], SimulationError, "is one token"),
    ("last", [Slice((plan(A._replace(last=True)), NO_PLAN), 0, 4)], SimulationError, "samples one"),
    ("large", [Slice((plan(chunk(0, 0, 65)), NO_PLAN), 0, 4)], UnknownShapeError, "slice of 65 tokens"),
    (
        "lost",
        [Slice((plan(A), NO_PLAN), 0, 4), Slice((plan(B), plan(A)), 0, 2), Slice((plan(B), NO_PLAN), 2, 4)],
        SimulationError,
        "lost its chunk at 0",
    ),
]


@pytest.mark.parametrize(("work", "error", "message"), [one[1:] for one in REFUSED], ids=[one[0] for one in REFUSED])
def test_what_no_runtime_could_do_is_an_error(work: list[Slice], error: type[Exception], message: str) -> None:
    runtime = executor(VirtualClock(), spp=2)
    for before in work[:-1]:
        runtime.submit_slice(before)
    done = runtime.totals.seconds
    with pytest.raises(error, match=message):
        runtime.submit_slice(work[-1])
    assert runtime.totals.seconds == done


def test_a_request_is_in_one_lane_at_a_time() -> None:
    runtime = executor(VirtualClock(), spp=2)
    runtime.submit_slice(Slice((plan(A), NO_PLAN), 0, 4))
    with pytest.raises(SimulationError, match="a tick has a chunk of slot 0"):
        runtime.submit(plan(chunk(0, 16, 4)))
    runtime.submit_slice(Slice((NO_PLAN, plan(A)), 0, 4))
    runtime.submit(plan(chunk(0, 16, 4)))
    with pytest.raises(SimulationError, match="pipeline of ticks"):
        runtime.submit_slice(Slice((plan(chunk(0, 20, 16)), NO_PLAN), 0, 4))
    runtime.submit(NO_PLAN)
    runtime.submit_slice(Slice((plan(chunk(0, 20, 16)), NO_PLAN), 0, 4))


def test_a_dropped_chunk_is_computed_again() -> None:
    runtime = executor(VirtualClock(), spp=2)
    runtime.submit_slice(Slice((plan(A), NO_PLAN), 0, 4))
    runtime.submit_slice(Slice((plan(B), plan(A)), 0, 2))
    # everything was dropped: a round begins anew, and the request with its first token that is not computed
    with pytest.raises(SimulationError, match="slot 0 is at 0 tokens; a chunk came that starts at 16"):
        runtime.submit_slice(Slice((plan(B), NO_PLAN), 0, 1))
    runtime.submit_slice(Slice((plan(A), NO_PLAN), 0, 1))
    runtime.submit_slice(Slice((plan(A), NO_PLAN), 1, 2))
    admit(runtime, 0)
    with pytest.raises(SimulationError, match="does not hold"):
        runtime.submit_slice(Slice((plan(A), NO_PLAN), 2, 4))
    runtime.submit(plan(chunk(0, 64, 4)))
    runtime.renew()
    with pytest.raises(SimulationError, match="slot 1 is at -1"):
        runtime.submit_slice(Slice((plan(C), NO_PLAN), 0, 4))


def cut(lengths: list[int]) -> list[tuple[int, int]]:
    """Layers of the slices of a round."""
    found, first = [], 0
    for length in (*lengths, *(1,) * LAYERS):
        if first + length <= LAYERS:
            found.append((first, first + length))
            first += length
    return found


rounds = st.lists(st.tuples(st.integers(2, 64), st.lists(st.sampled_from(LENGTHS), max_size=4)), min_size=1, max_size=5)


@given(rounds, st.integers(1, 3), st.booleans())
def test_a_cut_costs_its_overhead_and_nothing_else(
    chunks: list[tuple[int, list[int]]], stages: int, ticks: bool
) -> None:
    runtime, whole = executor(VirtualClock(), spp=stages), executor(VirtualClock(), spp=stages)
    at, slices, flight = 0, 0, (NO_PLAN,) * stages
    for length, lengths in [*chunks, *[(0, [])] * (stages - 1)]:
        flight, at = (plan(chunk(0, at, length)) if length else NO_PLAN, *flight[:-1]), at + length
        left = whole.collect(whole.submit_slice(Slice(flight, 0, LAYERS)))
        for first, past in cut(lengths):
            results = runtime.collect(runtime.submit_slice(Slice(flight, first, past)))
            assert results == (left if past == LAYERS else [])
            slices += 1
            if ticks:
                runtime.collect(runtime.submit(plan(chunk(1, 4 * runtime.totals.ticks, 4))))
    done = runtime.totals
    assert (done.slices, whole.totals.slices) == (slices, len(chunks) + stages - 1)
    assert done.slice_seconds == pytest.approx(whole.totals.seconds + 0.25 * (slices - whole.totals.slices))
    assert done.tokens - 4 * done.ticks == whole.totals.tokens == at
    runtime.submit(plan(chunk(0, at, 4)))  # nothing is held any more


@given(rounds, st.integers(1, 3), st.data())
def test_chunks_can_be_dropped_at_any_layer(
    chunks: list[tuple[int, list[int]]], stages: int, data: st.DataObject
) -> None:
    """Two requests in turn; one of them loses all that is held, and computes it again later."""
    runtime = executor(VirtualClock(), spp=stages)
    at, flight = [0, 0], (NO_PLAN,) * stages
    for number, (length, lengths) in enumerate([*chunks, *[(0, [])] * (stages - 1)]):
        slot = number % 2
        flight, at[slot] = (plan(chunk(slot, at[slot], length)) if length else NO_PLAN, *flight[:-1]), at[slot] + length
        for first, past in cut(lengths):
            if not any(held.chunks for held in flight):
                break
            runtime.collect(runtime.submit_slice(Slice(flight, first, past)))
            if past < LAYERS and data.draw(st.booleans()):
                gone = data.draw(st.integers(0, 1))
                lost = [one.start for held in flight for one in held.chunks if one.slot == gone]
                at[gone] = min(lost, default=at[gone])
                flight = tuple(plan(*(one for one in held.chunks if one.slot != gone)) for held in flight)
        if past < LAYERS:  # all was dropped within the round
            flight = (NO_PLAN,) * stages
    last = chunk(data.draw(st.integers(0, 1)), 0, 4)
    runtime.submit_slice(Slice((plan(last._replace(start=at[last.slot])), *(NO_PLAN,) * (stages - 1)), 0, 1))
