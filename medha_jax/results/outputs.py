"""The messages of one stream, in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class Outputs(Sequence[tuple[float, int]]):
    """Messages of one stream as (seconds, tokens). Two arrays hold 12 bytes a message, where pairs would take 100.

    Owned by who adds to it, until its stream has ended.
    """

    __slots__ = ("_seconds", "_tokens")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, seconds: Iterable[float] = (), tokens: Iterable[int] = ()) -> None:
        """Begin with some messages.

        Raises:
            ValueError: there are not as many tokens as seconds.
        """
        self._seconds, self._tokens = array("d", seconds), array("I", tokens)
        if len(self._seconds) != len(self._tokens):
            raise ValueError(f"{len(self._seconds)} times and {len(self._tokens)} counts of tokens")

    def add(self, seconds: float, tokens: int) -> None:
        """Note a message."""
        self._seconds.append(seconds)
        self._tokens.append(tokens)

    @property
    def seconds(self) -> np.ndarray:
        """When each message came `[messages]`, a copy."""
        return np.array(self._seconds)

    @property
    def counts(self) -> np.ndarray:
        """Tokens of each message `[messages]`, a copy."""
        return np.array(self._tokens)

    @property
    def tokens(self) -> int:
        """Of all messages."""
        return sum(self._tokens)

    @property
    def first(self) -> float | None:
        """Seconds of the first message, None without any."""
        return self._seconds[0] if self._seconds else None

    def spread(self, tokens: int) -> None:
        """Count `tokens` in all instead, over the messages as evenly as whole numbers allow, and the most at first."""
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
