from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medha_jax.config import Buckets
from medha_jax.scheduler.tick_budget import TickBudget, TickLoad
from medha_jax.scheduler.tick_targets import TickTarget
from medha_jax.scheduler.time_model import LinearTimeModel, TickWork
from medha_jax.specs.tick_shapes import TickShapes

OWN = Buckets(decode=(2, 4), prefill=(16, 64), chunks=3, slices=())
SHARED = Buckets(decode=(1,), prefill=(32,), chunks=1, slices=())
ROWS = LinearTimeModel(tokens=1.0)  # a second for every row of the bucket


def room(groups: int = 1, model: LinearTimeModel = ROWS, own: Buckets = OWN) -> TickBudget:
    return TickBudget(TickShapes(own, SHARED, groups, 100, 4, 1, 8, 400), model)


def test_work_by_hand_on_one_group() -> None:
    tick = room()
    assert tick.decode((0,), 9) and tick.decode((0,), 19) and tick.decode((0,), 29)
    tick.prefill((0,), 40, 10, long=False)
    # three decodes in four rows, ten tokens in sixteen; queries at 40..49 see 41..50
    assert tick.tick[0] == TickWork(tokens=4 + 16, attention=sum(range(41, 51)), context=10 + 20 + 30 + 50, rows=4)


def test_work_is_that_of_the_fullest_group_and_of_the_shared_rows() -> None:
    tick = room(groups=2)
    tick.prefill((0,), 0, 10, long=False)
    tick.prefill((1,), 0, 40, long=False)
    assert tick.tick[0] == TickWork(tokens=2 + 64, attention=820, context=40, rows=1)
    # 20 rows at 150 see at most 100 tokens in a group
    tick.prefill((1, 0), 150, 20, long=True)
    assert tick.decode((1, 0), 199)
    assert tick.tick[0] == TickWork(tokens=66 + 1 + 32, attention=820 + 2000, context=40 + 100 + 100, rows=3)


def test_mixed_only_shapes_have_prompt_rows_in_every_tick() -> None:
    tick = room(own=Buckets(decode=(2,), prefill=(16,), mixed_only=True, slices=()))
    assert tick.decode((0,), 0)
    assert tick.tick[0].tokens == 18


def test_a_chunk_fills_the_bucket_that_is_paid_for() -> None:
    tick = room()
    tick.prefill((0,), 0, 40, long=False)
    # 24 tokens are left of the bucket of 64, which costs the same with them
    assert tick.largest((0,), 0, 200, TickTarget(2 + 64, 0)) == 24
    assert tick.largest((0,), 0, 5, TickTarget(2 + 64, 0)) == 5
    assert tick.largest((0,), 0, 200, TickTarget(65, 0)) == 0


def test_the_largest_chunk_within_the_limit() -> None:
    tick = room()
    assert tick.largest((0,), 0, 200, TickTarget(66, 0)) == 64
    assert tick.largest((0,), 0, 200, TickTarget(65, 0)) == 16
    assert tick.largest((0,), 0, 200, TickTarget(1, 0)) == 0
    assert tick.largest((0,), 0, 200, TickTarget(1, 1e9)) == 16, "never zero progress"


def test_a_tick_that_may_take_longer_has_the_chunk_that_is_worth_it() -> None:
    """At position 60 a tick with 16, 32 or 64 rows takes 96, 128 or 168 seconds, at the beginning 36, 68 or 132."""
    tick = room(
        own=Buckets(decode=(4,), prefill=(16, 32, 64), chunks=3, slices=()), model=LinearTimeModel(tokens=1, context=1)
    )
    assert tick.largest((0,), 60, 200, TickTarget(96, 1e9)) == 16
    assert tick.largest((0,), 60, 200, TickTarget(96, 1e9, 1.5)) == 32
    assert tick.largest((0,), 60, 200, TickTarget(96, 1e9, 2)) == 64
    assert tick.largest((0,), 60, 200, TickTarget(20, 1e9, 2)) == 64, "twice what the smallest takes"
    assert tick.largest((0,), 60, 200, TickTarget(20, 20, 2)) == 0
    assert tick.largest((0,), 0, 200, TickTarget(36, 1e9, 2)) == 16, "twice the time for twice the work"


def test_another_group_s_padding_is_free() -> None:
    tick = room(groups=2)
    tick.prefill((0,), 0, 64, long=False)
    assert tick.largest((1,), 0, 200, TickTarget(66, 0)) == 64


def test_rows_and_chunks_run_out() -> None:
    tick = room()
    assert [tick.decode((0,), 0) for _ in range(5)] == [True] * 4 + [False]
    assert tick.largest((0,), 0, 1, TickTarget(1e9, 1e9)) == 0, "a single token is a decode row"
    for _ in range(3):
        assert not tick.full
        tick.prefill((0,), 0, 2, long=False)
    assert tick.full
    assert tick.largest((0,), 0, 20, TickTarget(1e9, 1e9)) == 0
    assert tick.stated((0,), 0, 20, TickTarget(1e9, 1e9)) == 0


def test_one_long_prompt_a_group() -> None:
    tick = room(groups=2)
    tick.prefill((0,), 0, 8, long=True)
    assert tick.crowded((0,))
    assert not tick.crowded((1,))
    assert tick.crowded((1, 0)), "shared rows are computed by both groups"
    shared = room(groups=2)
    shared.prefill((1, 0), 150, 8, long=True)
    assert shared.crowded((0,)) and shared.crowded((1,))


def test_stages_run_in_one_bucket_and_wait_for_the_slowest() -> None:
    model = LinearTimeModel(tokens=1.0, attention=0.1)
    shapes = TickShapes(OWN, SHARED, 1, 1000, 4, 3, 8, 400)
    tick = TickBudget(shapes, model, [TickLoad((1, 64, 1, 0), 100.0, 9.0, 1), TickLoad()])
    assert tick.decode((0,), 5) and tick.decode((0,), 5) and tick.decode((0,), 5)
    assert tick.tick == (TickWork(4 + 64 + 1, 100.0, 9.0, 1), 69 + 10)
    assert tick.seconds == 4, "alone"
    tick.prefill((0,), 99, 10, long=False)  # these see 100 to 109 tokens
    assert tick.tick == (TickWork(4 + 64 + 1, 1045.0, 18.0 + 109.0, 4), 69 + 104.5)


def test_what_is_in_flight_widens_the_tick() -> None:
    """A plan of 64 rows in the next stage: 16 rows here cost as much as 64, and attention has less time left."""
    model = LinearTimeModel(tokens=1.0, attention=0.1)
    shapes = TickShapes(OWN, SHARED, 1, 1000, 4, 2, 8, 400)
    alone, beside = TickBudget(shapes, model), TickBudget(shapes, model, [TickLoad((2, 64, 0, 0), rows=1)])
    assert alone.largest((0,), 100, 300, TickTarget(192, 0)) == 16  # 18 rows, 16 that see 100 to 116
    assert beside.largest((0,), 100, 300, TickTarget(192, 0)) == 0  # 66 rows
    assert beside.largest((0,), 100, 300, TickTarget(240, 0)) == 16


def test_what_does_not_lengthen_the_tick_is_free() -> None:
    """The other stage takes 500 s: up to their own target, rows here cost nothing in this tick."""
    shapes = TickShapes(OWN, SHARED, 1, 1000, 4, 2, 8, 400)
    model = LinearTimeModel(tokens=1.0, attention=0.1)
    tick = TickBudget(shapes, model, [TickLoad((2, 64, 0, 0), attention=5000.0, rows=1)])
    assert tick.largest((0,), 0, 300, TickTarget(20, 0)) == 0, "18 rows and 13.6 s are too much by themselves"
    assert tick.largest((0,), 0, 300, TickTarget(40, 0)) == 16
    assert tick.largest((0,), 0, 300, TickTarget(400, 0)) == 64


@st.composite
def rooms(draw: st.DrawFn) -> tuple[TickBudget, int]:
    """A tick with some rows taken, and perhaps a plan in another stage; and how many groups it has."""
    groups, share = draw(st.sampled_from([1, 2])), st.floats(0, 2)
    model = LinearTimeModel(*(draw(share) for _ in range(5)))
    shapes = TickShapes(OWN, SHARED, groups, 100, 4, 1, 8, 400)
    other = TickLoad(
        (2, draw(st.sampled_from([0, 16, 64])), 0, 0), draw(st.floats(0, 5000)), draw(st.floats(0, 400)), 2
    )
    tick = TickBudget(shapes, model, draw(st.sampled_from([(), (other,)])))
    for _ in range(draw(st.integers(0, 6))):
        owners = draw(st.sampled_from([(0,), (1, 0)][:groups]))
        start = draw(st.integers(0, 99)) + 100 * (len(owners) - 1)
        if draw(st.booleans()):
            tick.decode(owners, start)
        elif length := tick.largest(owners, start, draw(st.integers(1, 60)), TickTarget(1e9, 0)):
            tick.prefill(owners, start, length, long=False)
    return tick, groups


@given(rooms(), st.floats(0, 3000), st.data())
def test_where_no_more_fits_no_chunk_of_several_tokens_does(
    made: tuple[TickBudget, int], limit: float, data: st.DataObject
) -> None:
    tick, groups = made
    owners = data.draw(st.sampled_from([(0,), (1, 0)][:groups]))
    start = data.draw(st.integers(0, 99)) + 100 * (len(owners) - 1)
    most = data.draw(st.integers(2, 60))
    if tick.largest(owners, start, most, TickTarget(limit, 0)):
        assert tick.more_fits(limit)
