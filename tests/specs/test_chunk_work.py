from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.specs.chunk_work import chunk_attention, chunk_attentions, chunk_read, chunk_reads


@given(st.integers(0, 40), st.integers(1, 20))
def test_attention_is_the_sum_of_what_each_row_sees(start: int, length: int) -> None:
    per_group = 20
    length = min(length, per_group - start % per_group)  # a chunk stays in one part
    # the chunk's own group sees what it holds itself; the first one is full once the second begins
    seen = sum(min(position + 1, per_group) for position in range(start, start + length))
    assert chunk_attention(start, length, per_group) == seen
    assert chunk_read(start + length, per_group) == min(start + length, per_group)


def test_many_chunks_are_those_of_one_by_one() -> None:
    starts, lengths = np.array([0, 5, 20, 39]), np.array([7, 1, 20, 1])
    one_by_one = [chunk_attention(int(s), int(n), 20) for s, n in zip(starts, lengths, strict=True)]
    assert chunk_attentions(starts, lengths, 20) == pytest.approx(one_by_one)
    assert chunk_reads(starts + lengths, 20).tolist() == [7, 6, 20, 20]
