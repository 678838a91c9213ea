from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.attention import Attention, GpuTarget, KernelAttention, XlaAttention
from medha_jax.attention.gpu.launch import shipped_table
from medha_jax.config import Buckets
from medha_jax.plan import Chunk, StepPlan
from medha_jax.runtime.packing import EMPTY, Geometry, bucket_for, pack, places, slice_bucket_for
from medha_jax.runtime.plan_columns import PlanColumns
from medha_jax.runtime.plan_layout import PlanLayout
from medha_jax.specs.buckets import Bucket, Segment
from medha_jax.specs.tick_shapes import TickShapes
from tests.runtime.plain_packing import plain_pack, plain_places
from tests.scheduler.test_scheduler_properties import events, serve, servers

BUCKETS = Buckets(decode=(1, 4), prefill=(16, 64, 256, 1024), chunks=4, slices=())
SHARED = Buckets(decode=(2,), prefill=(8, 32), chunks=2, slices=())
PAGE, SLOTS, PER_GROUP = 16, 9, 32


@st.composite
def plans(draw: st.DrawFn) -> StepPlan:
    """Chunks of different slots that fit the largest bucket."""
    singles = draw(st.integers(0, 4))
    longer = draw(st.lists(st.integers(2, 1000), max_size=4).filter(lambda x: sum(x) <= 1024))
    chunks = []
    for slot, length in enumerate([1] * singles + longer):
        start = draw(st.integers(0, 5000))
        decode = length == 1 and draw(st.booleans())
        first, past = -(-start // PAGE), -(-(start + length) // PAGE)
        chunks.append(
            Chunk(
                slot=slot,
                start=start,
                length=length,
                tokens=None if decode else tuple(range(100, 100 + length)),
                last=draw(st.booleans()),
                first_page=first,
                pages=tuple(range(7, 7 + past - first)),
            )
        )
    return StepPlan(tuple(draw(st.permutations(chunks))))


def geometry(groups: int = 1) -> Geometry:
    shared = None if groups == 1 else SHARED
    return Geometry(groups, PAGE, 2**30 if groups == 1 else PER_GROUP, SLOTS, BUCKETS, shared)


def columns(*plans: StepPlan) -> list[PlanColumns]:
    return [PlanColumns.of(plan) for plan in plans]


def places_of(plan: StepPlan, bucket: Bucket) -> list[tuple[int, int]]:
    return list(zip(*places(PlanColumns.of(plan), bucket), strict=True))


XLA = XlaAttention("asked for")
KERNELS = KernelAttention(GpuTarget("any", 90, 3), shipped_table(), 2, 4, 128, "bfloat16")


def layout_of(bucket: Bucket, attention: Attention = XLA) -> PlanLayout:
    return PlanLayout(bucket, PAGE, attention.layout(bucket))


def unpack(packed: np.ndarray, bucket: Bucket, stage: int, group: int) -> dict[str, np.ndarray]:
    return layout_of(bucket).views(packed[stage, group])


@given(plans())
def test_every_token_stands_once_in_rows_tiles_and_samples(plan: StepPlan) -> None:
    bucket = bucket_for(columns(plan), geometry())
    view = unpack(pack(columns(plan), layout_of(bucket), geometry()), bucket, 0, 0)
    rows = {(int(s), int(p)): r for r, (s, p) in enumerate(zip(view["row_slot"], view["row_position"], strict=True))}
    wanted = {(c.slot, p): c for c in plan.chunks for p in range(c.start, c.end)}
    assert {key for key in rows if key[0] < SLOTS} == set(wanted)
    for (slot, position), chunk in wanted.items():
        token = -1 if chunk.tokens is None else chunk.tokens[position - chunk.start]
        assert view["row_token"][rows[slot, position]] == token

    covered = []
    for row in view["write_row"][: int(view["writes"])]:
        slot, position = int(view["row_slot"][row]), int(view["row_position"][row])
        assert view["decode_length"][row] == position + 1
        covered.append((slot, position))
    assert (view["decode_length"] > 0).sum() == len(covered)
    ends = {chunk.slot: chunk.end for chunk in plan.chunks}
    for size, most in bucket.tiles.items():
        used = int(view[f"tile{size}_used"])
        assert used <= most
        for at in range(used):
            names = ("slot", "row", "start", "count", "limit", "stored")
            slot, row, start, count, limit, stored = (int(view[f"tile{size}_{name}"][at]) for name in names)
            assert 1 <= count == stored <= size
            assert limit == ends[slot]
            assert row >= bucket.decodes
            for offset in range(count):
                assert rows[slot, start + offset] == row + offset
                covered.append((slot, start + offset))
    assert sorted(covered) == sorted(wanted)

    def entries(*names: str) -> list[tuple[int, ...]]:
        return list(zip(*(view[name].tolist() for name in names), strict=True))

    kept = {(slot, row) for slot, row, keep in entries("sample_slot", "sample_row", "sample_keep") if keep}
    assert kept == {(c.slot, rows[c.slot, c.end - 1]) for c in plan.chunks if c.last}
    updates = [entry for entry in entries("update_slot", "update_index", "update_page") if entry[0] < SLOTS]
    assert sorted(updates) == sorted((c.slot, c.first_page + i, p) for c in plan.chunks for i, p in enumerate(c.pages))
    found = places_of(plan, bucket)
    for number, chunk in enumerate(plan.chunks):
        group, sample = found[number]
        assert (group, view["sample_slot"][sample]) == (0, chunk.slot)


def test_groups_share_rows_and_only_the_owner_stores() -> None:
    shared = Chunk(0, 40, 5, (1,) * 5, True, 0, (9,), groups=(2, 0))
    decode = Chunk(1, 90, 1, None, True, 1, (4,), groups=(1, 2, 0))
    private = Chunk(2, 0, 3, (7,) * 3, True, 0, (5,), groups=(1,))
    plan, where = StepPlan((private, shared, decode)), geometry(3)
    bucket = bucket_for(columns(plan), where)
    assert bucket == Bucket(Segment(1, 16, 4), Segment(2, 8, 2))
    packed = pack(columns(plan), layout_of(bucket), where)
    seen = {}
    for group in range(3):
        view = unpack(packed, bucket, 0, group)
        row = bucket.shared_rows.start
        assert view["row_slot"][row] == 1, "the shared decode is there on every group"
        assert view["row_slot"][bucket.decodes] == 0
        own = view["row_slot"][bucket.decodes + bucket.shared.prefill :]
        assert (own[0] == 2) == (group == 1)
        seen[group] = (int(view["decode_length"][row]), int(view["writes"]))
        at = {name: int(view[f"tile8_{name}"][0]) for name in ("start", "limit", "stored")}
        # positions 32 to 64 lie on group 0, the first 32 on group 2, nothing on group 1
        assert (
            at
            == {
                0: {"start": 8, "limit": 13, "stored": 5},
                1: {"start": 40, "limit": 0, "stored": 0},
                2: {"start": 40, "limit": 32, "stored": 0},
            }[group]
        )
    assert seen == {0: (27, 1), 1: (32, 0), 2: (32, 0)}
    assert places_of(plan, bucket) == [(1, 5), (0, 2), (0, 0)]


def test_stages_run_at_the_largest_shape_in_flight() -> None:
    small, large = (StepPlan((Chunk(0, 0, n, (1,) * n, True),)) for n in (5, 100))
    bucket = bucket_for(columns(small, EMPTY, large), geometry())
    assert bucket.own.prefill == 256
    packed = pack(columns(small, EMPTY, large), layout_of(bucket), geometry())
    assert [int((unpack(packed, bucket, s, 0)["row_slot"] < SLOTS).sum()) for s in range(3)] == [5, 0, 100]


def test_the_work_list_says_what_the_tiles_say() -> None:
    """For the kernels the same rows stand in items, with the same local positions, and padding sees nothing."""
    shared = Chunk(0, 40, 5, (1,) * 5, True, 0, (9,), groups=(2, 0))
    decode = Chunk(1, 90, 1, None, True, 1, (4,), groups=(1, 2, 0))
    private = Chunk(2, 0, 3, (7,) * 3, True, 0, (5,), groups=(1,))
    plan, where = StepPlan((private, shared, decode)), geometry(3)
    bucket = bucket_for(columns(plan), where)
    layout = layout_of(bucket, KERNELS)
    packed = pack(columns(plan), layout, where)
    for group in range(3):
        view = layout.views(packed[0, group])
        items = {int(item[0]): item.tolist() for item in view["item"] if item[1] > 0}
        first, own, shared_row = bucket.decodes, bucket.decodes + bucket.shared.prefill, bucket.shared_rows.start
        row, count, slot, start, limit, *_ = items[first]
        wanted = {0: (8, 13), 1: (40, 0), 2: (40, 32)}[group]
        assert (row, count, slot, start, limit) == (first, 5, 0, *wanted)
        assert items[first + 5][1:5] == [bucket.shared.prefill - 5, 0, 0, 0], "padding"
        seen = {0: (26, 27), 1: (31, 32), 2: (31, 32)}[group]
        assert items[shared_row][:5] == [shared_row, 1, 1, *seen]
        assert items[own][1] == (3 if group == 1 else bucket.own.prefill)
        stored = {int(at): int(view["write_position"][at]) for at in np.flatnonzero(view["write_position"] >= 0)}
        assert (
            stored
            == {
                0: {shared_row: 26} | {first + at: 8 + at for at in range(5)},
                1: {own + at: at for at in range(3)},
                2: {},
            }[group]
        )


@given(plans())
def test_every_row_of_a_tick_is_somebodys(plan: StepPlan) -> None:
    where = geometry()
    bucket = bucket_for(columns(plan), where)
    layout = layout_of(bucket, KERNELS)
    for packed in (pack(columns(plan), layout, where), pack(columns(EMPTY), layout, where)):
        items = layout.views(packed[0, 0])["item"]
        whole = items[(items[:, 1] > 0) & (items[:, 5] == 0)]
        assert sorted(row for item in whole for row in range(item[0], item[0] + item[1])) == list(range(bucket.rows))


@settings(max_examples=20)
@given(servers(), events)
def test_plans_of_any_traffic_are_packed_as_in_the_plain_form(setting: dict[str, Any], happening: list[Any]) -> None:
    """Admissions, growth, groups, slices, preemptions, slots that are used again: all that a scheduler plans."""
    shapes: TickShapes = setting["shapes"]
    shared = shapes.shared if shapes.groups > 1 else None
    where = Geometry(shapes.groups, shapes.page_size, shapes.per_group, shapes.slots, shapes.own, shared)

    def same(stages: list[PlanColumns], bucket: Bucket) -> None:
        for attention in (XLA, KERNELS):
            layout = PlanLayout(bucket, shapes.page_size, attention.layout(bucket))
            plain = plain_pack([one.plan for one in stages], layout, where)
            np.testing.assert_array_equal(pack(stages, layout, where), plain)

    flight = columns(EMPTY) * shapes.stages
    for planned in serve(setting, happening)[0].plans:
        if planned.step is not None:
            held = columns(*planned.step.slice.stages)
            same(held, slice_bucket_for(held, where))
            continue
        flight = [PlanColumns.of(planned.plan), *flight[:-1]]
        bucket = bucket_for(flight, where)
        same(flight, bucket)
        leaving = flight[-1].plan
        assert dict(enumerate(places_of(leaving, bucket))) == plain_places(leaving, bucket)
