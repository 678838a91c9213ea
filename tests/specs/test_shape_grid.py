"""A server begins with shapes that hold every plan, and each later grid only adds some."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.config import Buckets, load_mesh
from medha_jax.specs.buckets import NO_ROWS, Bucket, Segment, smallest_bucket
from medha_jax.specs.shape_grid import ShapeGrid


@st.composite
def sizes(draw: st.DrawFn) -> Buckets:
    def some(least: int, most: int) -> tuple[int, ...]:
        return tuple(sorted(draw(st.sets(st.integers(least, most), min_size=1, max_size=3))))

    chunks, mixed_only = draw(st.integers(1, 4)), draw(st.booleans())
    return Buckets(some(1, 40), some(1, 300), chunks, mixed_only, draw(st.just(()) | st.just(some(2, 500))))


grids = st.builds(ShapeGrid, sizes(), st.none() | sizes())


@given(grids)
def test_each_grid_has_all_shapes_of_the_one_before(grid: ShapeGrid) -> None:
    assert grid.growth[-1] == grid
    before: set[Bucket] = set()
    for one in grid.growth:
        shapes = {*one.buckets, *one.slice_buckets}
        assert before < shapes
        before = shapes


@given(grids, st.data())
def test_the_first_one_holds_whatever_the_last_one_holds(grid: ShapeGrid, data: Any) -> None:
    def need(sizes: Buckets | None) -> Segment:
        if sizes is None:
            return NO_ROWS
        chunks = data.draw(st.integers(0, sizes.chunks))
        tokens = data.draw(st.integers(1, sizes.prefill[-1])) if chunks else 0
        return Segment(data.draw(st.integers(0, sizes.decode[-1])), tokens, chunks)

    own, shared = need(grid.own), need(grid.shared)
    for one in grid.growth:
        assert smallest_bucket(one.own, one.shared, own, shared) in one.buckets


@pytest.mark.parametrize(
    ("layout", "shapes"),
    [("tp=1", ["32+0", "32+128"]), ("cpu-small", ["8+0", "8+64"])],
)
def test_a_lone_group_begins_with_two_ticks(layout: str, shapes: list[str]) -> None:
    first = ShapeGrid.of(load_mesh(layout)).growth[0]
    assert [*map(str, first.buckets)] == shapes and not first.slice_buckets
