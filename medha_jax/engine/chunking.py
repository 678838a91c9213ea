"""How a prompt is cut into chunks of stated sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medha_jax.plan import InvalidRequestError


def chunk_lengths(
    prompt: int, sizes: Sequence[int], most: Callable[[int], int] = lambda start: 2**31
) -> tuple[int, ...]:
    """Cut `prompt` tokens into chunks of `sizes`, the last size repeated: 10 tokens in (4, 2) are 4, 2, 2, 2.

    Args:
        prompt: tokens.
        sizes: tokens of each chunk.
        most: tokens that a chunk which starts at a position may have at most (the border of a KV group, say).

    Raises:
        InvalidRequestError: there is no size, or one below 1.
    """
    if not sizes or min(sizes) < 1:
        raise InvalidRequestError(f"chunk sizes are {tuple(sizes)}; allowed are whole numbers from 1")
    lengths: list[int] = []
    done = 0
    while done < prompt:
        size = sizes[min(len(lengths), len(sizes) - 1)]
        lengths.append(min(prompt - done, size, most(done)))
        done += lengths[-1]
    return tuple(lengths)
