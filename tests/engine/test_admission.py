"""Stated chunk sizes, cut into the chunks of a prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.engine.admission import chunk_lengths
from medha_jax.plan import InvalidRequestError


@pytest.mark.parametrize(
    ("prompt", "sizes", "lengths"),
    [(10, (4, 2), (4, 2, 2, 2)), (10, (64,), (10,)), (3, (1,), (1, 1, 1)), (5, (2, 1, 9), (2, 1, 2))],
)
def test_the_last_size_repeats(prompt: int, sizes: tuple[int, ...], lengths: tuple[int, ...]) -> None:
    assert chunk_lengths(prompt, sizes) == lengths


@given(st.integers(1, 5000), st.lists(st.integers(1, 600), min_size=1, max_size=9))
def test_chunks_add_up_to_the_prompt(prompt: int, sizes: list[int]) -> None:
    lengths = chunk_lengths(prompt, sizes)
    assert sum(lengths) == prompt
    assert min(lengths) >= 1


@pytest.mark.parametrize("sizes", [(), (0,), (4, -1)])
def test_sizes_that_make_no_progress_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequestError, match="whole numbers from 1"):
        chunk_lengths(10, sizes)
