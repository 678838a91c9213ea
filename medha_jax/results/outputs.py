"""The messages of one stream, stored compactly."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class Outputs(Sequence[tuple[float, int]]):
    """Messages of one stream as (seconds, tokens), in 12 bytes each; pairs would take 100.

    The sender of the request owns it until its stream has ended.
    """

    __slots__ = ("_seconds", "_tokens")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, seconds: Iterable[float] = (), tokens: Iterable[int] = ()) -> None:
        """Begin with messages.

        Raises:
            ValueError: the lengths differ.
        """
        self._seconds, self._tokens = array("d", seconds), array("I", tokens)
        if len(self._seconds) != len(self._tokens):
            raise ValueError(f"{len(self._seconds)} times and {len(self._tokens)} counts of tokens")

    @classmethod
    def of(cls, messages: Sequence[tuple[float, int]]) -> Outputs:
        """Messages of any sequence; an `Outputs` is returned as it is."""
        if isinstance(messages, Outputs):
            return messages
        return cls((seconds for seconds, _ in messages), (tokens for _, tokens in messages))

    def add(self, seconds: float, tokens: int) -> None:
        """Add a message."""
        self._seconds.append(seconds)
        self._tokens.append(tokens)

    @property
    def seconds(self) -> np.ndarray:
        """Time of each message `[messages]`, a copy."""
        return np.array(self._seconds)

    @property
    def counts(self) -> np.ndarray:
        """Tokens of each message `[messages]`, a copy."""
        return np.array(self._tokens)

    @property
    def tokens(self) -> int:
        """Tokens of all messages."""
        return sum(self._tokens)

    def spread(self, tokens: int) -> None:
        """Replace the counts: spread `tokens` evenly over the messages; the first ones get the remainder."""
        count = len(self._tokens)
        # ceilings of the running total
        upto = [-(-place * tokens // count) for place in range(count + 1)] if count else []
        self._tokens = array("I", (upto[place + 1] - upto[place] for place in range(count)))

    def __len__(self) -> int:
        return len(self._seconds)

    @overload
    def __getitem__(self, place: int) -> tuple[float, int]: ...
    @overload
    def __getitem__(self, place: slice) -> list[tuple[float, int]]: ...
    def __getitem__(self, place: int | slice) -> tuple[float, int] | list[tuple[float, int]]:
        if isinstance(place, slice):
            return list(zip(self._seconds[place], self._tokens[place], strict=True))
        return self._seconds[place], self._tokens[place]

    def __iter__(self) -> Iterator[tuple[float, int]]:
        return zip(self._seconds, self._tokens, strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"Outputs({list(self._seconds)}, {list(self._tokens)})"
