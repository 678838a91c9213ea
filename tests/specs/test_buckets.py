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
    smallest_bucket,
    smallest_size,
    smallest_sizes,
)

BUCKETS = Buckets(decode=(1, 4), prefill=(16, 64, 256, 1024), chunks=4, slices=())
SHARED = Buckets(decode=(2,), prefill=(8, 32), chunks=2, slices=())


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
