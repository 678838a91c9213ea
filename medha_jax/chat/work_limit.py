"""Bounds what one rendering of a template does: its work and memory are counted, so no clock is needed."""

from __future__ import annotations

from collections.abc import Iterable, MappingView
from dataclasses import dataclass
from itertools import chain
from typing import Any

from jinja2.utils import Namespace

STEP = 64  # units of one turn of a loop, one call or one filter; a character that is copied is one unit
DEEPEST = 100  # lists and mappings within each other
BASE_WORK = 2**23  # units for any rendering: about 130,000 steps
WORK_PER_UNIT = 64  # more units for each one that the conversation weighs
_ITEM = 8  # units of a value beside its characters


class TooMuchWorkError(Exception):
    """A rendering went beyond its work, or made something too deep. No ValueError: filters catch those."""


@dataclass(frozen=True)
class _Seen:
    """A value that was weighed. It is held, so no later one has its id."""

    weight: int
    height: int
    value: Any


class WorkLimit:
    """Counts the work of one rendering. Owns what is left of it.

    A value's *weight* is at least the characters of its text. A list may hold another one twice, so a few doublings
    would make a text that no memory holds. So each new list or mapping is weighed as if it were written out, and
    refused above the limit: whatever a template can name has a bounded text.
    """

    def __init__(self, weight: int) -> None:
        """For a rendering of a conversation and tools of `weight` units."""
        self._most = self._left = BASE_WORK + WORK_PER_UNIT * weight

    def spend(self, units: int) -> None:
        """Count work, before it is done.

        Raises:
            TooMuchWorkError: that is more than is left.
        """
        self._left -= units
        if self._left < 0:
            raise TooMuchWorkError("it does too much work for this conversation")

    def read(self, *values: Any) -> None:
        """Count that values are searched or compared: of a text its characters, else the items of the outermost."""
        units = STEP
        for value in values:
            if isinstance(value, str):
                units += len(value) >> 2
            elif isinstance(value, (list, tuple, dict, MappingView, range)):
                units += _ITEM * len(value)
        self.spend(units)

    def write(self, *values: Any) -> None:
        """Count that values are written out as text."""
        self.spend(sum(len(value) if isinstance(value, str) else self.weight(value) for value in values))

    def indented(self, value: Any, width: int) -> None:
        """Count that a value is written out with each part of it on a line, indented by `width` a level."""
        seen = self._look(value, {}, 0)
        self.spend(seen.weight + seen.weight // _ITEM * seen.height * width)

    def made(self, value: Any) -> Any:
        """Count and return a new value.

        Raises:
            TooMuchWorkError: it is nested too deeply, its text would be too long, or no work is left.
        """
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, (list, tuple, dict, MappingView)):
            self.weight(value)
        elif isinstance(value, int) and value.bit_length() > 4096:
            raise TooMuchWorkError("it makes a number of more than 4096 bits")
        return value

    def weight(self, value: Any) -> int:
        """The weight of a value in units; to look at its items is work, too.

        Raises:
            TooMuchWorkError: as in `made`.
        """
        return self._look(value, {}, 0).weight

    def _look(self, value: Any, seen: dict[int, _Seen], depth: int) -> _Seen:
        if isinstance(value, str):
            return _Seen(_ITEM + len(value), 0, value)
        if isinstance(value, int):
            return _Seen(_ITEM + value.bit_length() // 3, 0, value)
        if isinstance(value, Namespace):
            raise TooMuchWorkError("it puts a namespace into a list or a mapping")
        if not isinstance(value, (list, tuple, dict, MappingView)):
            return _Seen(_ITEM, 0, value)
        found = seen.get(id(value))
        if found is None:
            if depth > DEEPEST:  # of Python's own stack; the height is what counts
                raise TooMuchWorkError(f"it nests lists and mappings more than {DEEPEST} times")
            found = seen[id(value)] = self._look_into(value, seen, depth)
        if found.height > DEEPEST:
            raise TooMuchWorkError(f"it nests lists and mappings more than {DEEPEST} times")
        return found

    def _look_into(self, value: Any, seen: dict[int, _Seen], depth: int) -> _Seen:
        self.spend(_ITEM * (len(value) + 1))
        items: Iterable[Any] = chain.from_iterable(value.items()) if isinstance(value, dict) else value
        weight, height = _ITEM, 0
        for item in items:
            if isinstance(item, str):
                weight += _ITEM + len(item)
            elif isinstance(item, int):
                weight += _ITEM + item.bit_length() // 3
            elif item is None or isinstance(item, float):
                weight += _ITEM
            else:
                part = self._look(item, seen, depth + 1)
                weight, height = weight + part.weight, max(height, part.height)
            if weight > self._most:
                raise TooMuchWorkError("it makes a list or mapping that is too large")
        return _Seen(weight, height + 1, value)
