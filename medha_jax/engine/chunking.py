"""How a prompt is cut into chunks of stated sizes."""

from __future__ import annotations

from collections.abc import Sequence

from medha_jax.plan import InvalidRequestError


def chunk_lengths(prompt: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Cut `prompt` tokens into chunks of `sizes`, the last size repeated: 10 tokens in (4, 2) are 4, 2, 2, 2.

    Raises:
        InvalidRequestError: there is no size, or one below 1.
    """
    if not sizes or min(sizes) < 1:
        raise InvalidRequestError(f"chunk sizes are {tuple(sizes)}; allowed are whole numbers from 1")
    lengths: list[int] = []
    left = prompt
    while left:
        lengths.append(min(left, sizes[min(len(lengths), len(sizes) - 1)]))
        left -= lengths[-1]
    return tuple(lengths)
