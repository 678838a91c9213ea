from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.config import Buckets
from medha_jax.specs.buckets import (
    Bucket,
    Segment,
    UnknownShapeError,
    all_buckets,
    many_padded_sizes,
    padded_sizes,
    smallest_bucket,
    smallest_size,
    smallest_sizes,
)

BUCKETS = Buckets(decode=(1, 4), prefill=(16, 64, 256, 1024), chunks=4, slices=())
SHARED = Buckets(decode=(2,), prefill=(8, 32), chunks=2, slices=())
ALONE = Buckets(decode=(0, 1, 4), prefill=(16, 64, 256, 1024), chunks=4, slices=())  # also prompts without decodes


@given(st.sampled_from(all_buckets(BUCKETS, SHARED)), st.sampled_from(all_buckets(BUCKETS, SHARED)))
def test_rows_keep_their_place_in_the_register_from_bucket_to_bucket(one: Bucket, other: Bucket) -> None:
    largest = max(all_buckets(BUCKETS, SHARED), key=lambda bucket: bucket.rows)
    assert [row for here, _ in one.slices(largest) for row in range(here.start, here.stop)] == list(range(one.rows))
    for number in (0, 1):
        for kind in (0, 1):
            place = {}
            for bucket in (one, other):
                first = bucket.starts(number)[kind]
                place[bucket] = next((t.start for h, t in bucket.slices(largest) if h.start == first), None)
            known = {p for b, p in place.items() if (b.segments[number].decode, b.segments[number].prefill)[kind]}
            assert len(known) <= 1


@given(st.sampled_from(all_buckets(BUCKETS, SHARED)))
def test_shared_rows_are_one_run(bucket: Bucket) -> None:
    sizes = bucket.shared.decode, bucket.shared.prefill
    rows = [row for first, size in zip(bucket.starts(0), sizes, strict=True) for row in range(first, first + size)]
    assert rows == [*range(bucket.rows)][bucket.shared_rows]


def test_the_smallest_bucket_is_taken() -> None:
    def own(decodes: int, tokens: int, chunks: int) -> Bucket:
        return smallest_bucket(BUCKETS, None, Segment(decodes, tokens, chunks), Segment())

    assert own(0, 0, 0) == Bucket(Segment(1, 0, 0))
    assert own(2, 17, 1) == Bucket(Segment(4, 64, 4))
    assert {own(d, t, 1 if t else 0) for d in range(5) for t in range(1025)} == set(all_buckets(BUCKETS, None))


@pytest.mark.parametrize("shared", [None, SHARED, Buckets(decode=(0, 2), prefill=(8, 32), chunks=2, slices=())])
def test_a_prompt_alone_has_no_decode_rows_and_every_shape_has_rows(shared: Buckets | None) -> None:
    shapes = set(all_buckets(ALONE, shared))
    assert all(bucket.own.rows and (not bucket.shared.chunks or bucket.shared.rows) for bucket in shapes)
    alone = smallest_bucket(ALONE, shared, Segment(0, 17, 1))
    assert (alone.own, alone.decodes) == (Segment(0, 64, 4), 0)
    assert smallest_bucket(ALONE, shared, Segment()).own == Segment(1, 0, 0)  # of an empty plan
    needs = [Segment(decodes, tokens, min(tokens, 1)) for decodes in range(5) for tokens in (0, 1, 16, 17, 1024)]
    assert {smallest_bucket(ALONE, shared, need) for need in needs} <= shapes
    if shared is not None:
        few = Segment(0, 8, 1)
        assert {smallest_bucket(ALONE, shared, need, few) for need in needs} <= shapes


@given(st.integers(0, 4), st.integers(0, 1024), st.sampled_from([BUCKETS, ALONE]))
def test_padded_sizes_hold_the_rows_and_no_smaller_ones_do(decodes: int, tokens: int, buckets: Buckets) -> None:
    decode, prompt = padded_sizes(buckets, decodes, tokens)
    assert decode >= decodes and prompt >= tokens and decode + prompt
    smaller = [size for size in buckets.decode if size < decode]
    assert not smaller or smaller[-1] < max(decodes, int(not tokens))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1024))), st.sampled_from([BUCKETS, ALONE]))
def test_many_padded_sizes_are_those_of_one_by_one(needs: list[tuple[int, int]], buckets: Buckets) -> None:
    decodes, tokens = (np.array([need[at] for need in needs], int) for at in (0, 1))
    found = zip(*(sizes.tolist() for sizes in many_padded_sizes(buckets, decodes, tokens)), strict=True)
    assert list(found) == [padded_sizes(buckets, *need) for need in needs]


@pytest.mark.parametrize(("decodes", "tokens", "chunks"), [(5, 0, 0), (0, 1025, 1), (0, 10, 5)])
def test_a_plan_beyond_every_shape_is_an_error(decodes: int, tokens: int, chunks: int) -> None:
    need = Segment(decodes, tokens, chunks)
    with pytest.raises(UnknownShapeError, match="beyond the compiled shapes: 4 decodes, 1024 tokens, 4 chunks"):
        smallest_bucket(BUCKETS, None, need, Segment())
    with pytest.raises(UnknownShapeError, match="shared"):
        smallest_bucket(BUCKETS, SHARED, Segment(), need)
    with pytest.raises(UnknownShapeError, match="only one group"):
        smallest_bucket(BUCKETS, None, Segment(), need)


@given(st.lists(st.integers(0, 64), max_size=8))
def test_many_sizes_are_those_of_one_by_one(counts: list[int]) -> None:
    sizes = (0, 16, 64)
    assert smallest_sizes(sizes, np.array(counts)).tolist() == [smallest_size(sizes, count) for count in counts]
    assert smallest_sizes(sizes, np.array([65])).tolist() == [64]
