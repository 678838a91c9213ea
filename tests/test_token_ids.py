"""Token ids as arrays: what they equal, how they grow, and which are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.protos import inference_pb2 as pb
from medha_jax.token_ids import PIECE, GrowingIds, IdArray, array_of, counted, first_outside, joined, kept

ids = st.lists(st.integers(0, 2**31 - 1), max_size=50)


@given(ids, st.integers(-60, 60), st.integers(-60, 60))
def test_they_are_read_like_the_tuple_that_they_equal(tokens: list[int], start: int, end: int) -> None:
    got, same = kept(tokens), tuple(tokens)
    assert isinstance(got, IdArray) and got.array.dtype == np.int32
    assert got == same and same == got and hash(got) == hash(same) and got == kept(same)
    assert got[start:end] == same[start:end] and [*got] == tokens
    assert all(type(token) is int for token in (*got, *(got[at] for at in range(len(got)))))
    assert got != (*same, 1) and got != kept((*same, 1))
    np.testing.assert_array_equal(np.asarray(got, np.int64), np.asarray(tokens, np.int64))


def test_a_slice_is_a_view_and_what_is_kept_already_is_not_copied() -> None:
    whole = np.arange(10, dtype=np.int32)
    got = kept(whole)
    assert np.shares_memory(got.array, whole) and np.shares_memory(got[3:5].array, whole)
    assert kept(got) is got and kept(range(10**12)) == range(10**12)


def test_they_come_from_every_kind_of_sequence() -> None:
    message = pb.PromptIds(ids=[5, 2**31 - 1])
    for stated in (message.ids, [5, 2**31 - 1], (5, 2**31 - 1), np.array([5, 2**31 - 1], np.uint64)):
        assert kept(stated) == (5, 2**31 - 1)
    assert array_of(pb.PromptIds().ids).dtype == array_of(()).dtype == array_of(range(0)).dtype == np.int32
    long = tuple(range(2 * PIECE + 3))
    assert kept(long) == long and [*kept(long)] == [*long]


@given(st.lists(ids, max_size=30))
def test_growing_ones_are_their_parts_one_after_the_other(parts: list[list[int]]) -> None:
    grown, views = GrowingIds(parts[0] if parts else ()), []
    for part in parts[1:]:
        views.append((grown[:], tuple(grown)))
        grown.extend(part)
    assert grown == tuple(token for part in parts for token in part)
    assert all(view == then for view, then in views), "what was read before stays right"
    assert grown.whole() == grown


def test_they_grow_without_a_copy_at_every_part_and_end_without_room() -> None:
    grown, buffers = GrowingIds(), set()
    for at in range(0, 100_000, 100):
        grown.extend(range(at, at + 100))
        buffers.add(grown.array.base.ctypes.data)
    assert len(buffers) < 20
    assert grown.whole() == tuple(range(100_000)) and grown.whole().array.base is None


@pytest.mark.parametrize(
    ("tokens", "bad"),
    [
        ((), None),
        ((0, 9), None),
        ((1, 10, -1), 10),
        ((1, -1, 10), -1),
        ((2**31,), 2**31),
        ((1, 2**63), 2**63),
        ((1, 2**80, -5), 2**80),
        (np.array([3, 2**32 - 1], np.uint32), 2**32 - 1),
        (np.array([3, -(2**40)]), -(2**40)),
        (range(10), None),
        (range(10**9), 10),
        (range(9, -2, -1), -1),
        (range(0), None),
    ],
)
def test_the_first_id_outside_the_vocabulary(tokens: tuple[int, ...], bad: int | None) -> None:
    assert first_outside(tokens, 10) == first_outside(kept(tokens), 10) == bad
    assert bad is None or type(first_outside(tokens, 10)) is int


@given(st.lists(st.integers(0, 99), max_size=30), st.booleans())
def test_counts(tokens: list[int], large: bool) -> None:
    tokens = [token + large * 2**30 for token in tokens]
    distinct, counts = counted(tokens)
    assert dict(zip(distinct.tolist(), counts.tolist(), strict=True)) == {one: tokens.count(one) for one in tokens}
    assert distinct.tolist() == sorted(set(tokens))


def test_joined_ranges_and_arrays() -> None:
    assert joined(range(3, 5), kept([1])) == (3, 4, 1) and joined((), ()) == ()
