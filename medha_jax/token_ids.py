"""Token ids as int32 arrays: 4 bytes a token, where a tuple of Python's numbers takes 40.

Work on all ids of a prompt is NumPy's. A million Python objects would hold the interpreter for tens of milliseconds.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

DTYPE = np.dtype(np.int32)
_LEAST, _MOST = np.iinfo(DTYPE).min, np.iinfo(DTYPE).max
PIECE = 16384  # ids that are converted at once, so that other threads get the interpreter in between
_FIRST_ROOM = 64  # ids
_TABLE = 2**22  # ids below this are counted in a table, which is ten times as fast as sorting them


class IdArray(Sequence[int]):
    """Token ids in an array, which nobody may write. A slice is a view. It equals a tuple of the same ids.

    `array` is int32, `[tokens]`. It is wider if an id is outside int32: such a prompt is only there to be refused.
    """

    __slots__ = ("array",)

    def __init__(self, ids: np.ndarray) -> None:
        self.array = ids

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> IdArray: ...
    def __getitem__(self, place: int | slice) -> int | IdArray:
        if isinstance(place, slice):
            return IdArray(self.array[place])
        return int(self.array[place])

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self.array), PIECE):
            yield from self.array[start : start + PIECE].tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype, copy=copy)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, IdArray):
            return np.array_equal(self.array, other.array)
        if isinstance(other, tuple):
            return len(other) == len(self) and tuple(self) == other
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))  # as the tuple that it equals; only chunks, which are short, are hashed

    def __repr__(self) -> str:
        return f"IdArray({self.array!r})"  # NumPy leaves out the middle of a long one


class GrowingIds(IdArray):
    """Token ids to which more are added. Owns a buffer that doubles, so `n` ids take O(n) time, whatever the parts.

    `array` and slices are views of the buffer, and stay right when more ids come.
    """

    __slots__ = ("_buffer",)

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self._buffer = np.empty(max(len(ids), _FIRST_ROOM), DTYPE)
        super().__init__(self._buffer[:0])
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Add ids, which must be within int32."""
        start, end = len(self), len(self) + len(ids)
        if end > len(self._buffer):
            old, self._buffer = self.array, np.empty(max(end, 2 * len(self._buffer)), DTYPE)
            self._buffer[:start] = old
        self._buffer[start:end] = array_of(ids)
        self.array = self._buffer[:end]

    def whole(self) -> IdArray:
        """All ids, without room for more; a view if that wastes below 1/8 of the buffer."""
        wasted = 8 * (len(self._buffer) - len(self))
        return IdArray(self.array.copy() if wasted > len(self._buffer) else self.array)


def kept(ids: Sequence[int]) -> IdArray | range:
    """Ids as they are kept: an `IdArray` or a range as it is, and anything else as an `IdArray`.

    `ids` may be a list, a tuple, a NumPy array or a field of a message. Ids outside int32 are kept, too, to be refused.
    """
    return ids if isinstance(ids, (IdArray, range)) else IdArray(array_of(ids))


def array_of(ids: Sequence[int]) -> np.ndarray:
    """Ids as an array `[tokens]`, int32 if all of them are; not a copy if they are one already."""
    if isinstance(ids, IdArray):
        return ids.array
    if isinstance(ids, range):
        return _narrow(np.arange(ids.start, ids.stop, ids.step, dtype=np.int64))
    if isinstance(ids, (list, tuple)):
        found = np.empty(len(ids), DTYPE)
        try:
            for start in range(0, len(ids), PIECE):
                piece = ids[start : start + PIECE]
                found[start : start + PIECE] = np.array(piece, DTYPE)
        except OverflowError:
            return np.array(ids, object)
        return found
    return _narrow(np.asarray(ids))  # a message's field gives its numbers at once


def joined(first: Sequence[int], second: Sequence[int]) -> IdArray:
    """The ids of both, one after the other."""
    return IdArray(np.concatenate([array_of(first), array_of(second)]))


def counted(ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ids, none below 0, in increasing order, and how many there are of each."""
    found = array_of(ids)
    if not len(found) or found.max() >= _TABLE:
        return np.unique(found, return_counts=True)
    counts = np.bincount(found)
    distinct = np.flatnonzero(counts)
    return distinct, counts[distinct]


def first_outside(ids: Sequence[int], vocab: int) -> int | None:
    """The first id that is not in `[0, vocab)`; None if all are."""
    if not len(ids):
        return None
    if isinstance(ids, range):  # its numbers rise or fall, so the bad ones follow the good ones
        if not 0 <= ids[0] < vocab:
            return ids[0]
        good = len(range(ids.start, vocab if ids.step > 0 else -1, ids.step))
        return ids[good] if good < len(ids) else None
    found = array_of(ids)
    if found.min() >= 0 and found.max() < vocab:
        return None
    return int(found[np.argmax((found < 0) | (found >= vocab))])


def no_ids() -> array[int]:
    """A buffer of 4 bytes a token that grows by one id at a time, as fast as a list."""
    return array("i")


def _narrow(ids: np.ndarray) -> np.ndarray:
    """An array as int32, if all of its ids are."""
    if ids.dtype == DTYPE:
        return ids
    if len(ids) and (ids.min() < _LEAST or ids.max() > _MOST):
        return ids
    return ids.astype(DTYPE)
