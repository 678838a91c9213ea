"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Sequence


def _failure(stop: str) -> list[int]:
    """Knuth-Morris-Pratt table: at `k`, the longest proper prefix of `stop` that `stop[:k]` ends with."""
    table = [0] * (len(stop) + 1)
    k = 0
    for position in range(1, len(stop)):
        while k and stop[position] != stop[k]:
            k = table[k]
        if stop[position] == stop[k]:
            k += 1
        table[position + 1] = k
    return table


class StopStrings:
    """Passes text through until the first stop string, however the text is cut into pieces.

    The stop string that *starts* first wins, even if another is complete earlier. If two start together, the
    shorter wins. Only a tail that may become a stop string is withheld. Time is linear in the text for any stop
    strings. Owns the withheld tail.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """Look for `stops`; `include` keeps the found one at the end of the text.

        Raises:
            ValueError: a stop string is empty.
        """
        if "" in stops:
            raise ValueError("a stop string is empty; it must have at least one character")
        self._stops = tuple(stops)
        self._include = include
        self._tables = [_failure(stop) for stop in stops]
        self._lengths = [0] * len(self._stops)  # of each stop, the characters matched at the end of the text
        self._held = ""
        self._found: tuple[int, str] | None = None  # start within `_held`, stop string
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text.

        Returns:
            The text that is safe to show, and the stop string that ended it or None. After a match, every
            push returns no text and the same stop string.
        """
        if self._matched is not None or not self._stops:
            return ("", self._matched) if self._stops else (text, None)
        held = self._held + text
        for position in range(len(self._held), len(held)):
            self._advance(held, position)
            if self._found and self._earliest(position + 1) >= self._found[0]:
                return self._match(held)
        return self._release(held)

    def finish(self) -> tuple[str, str | None]:
        """End the text; returns the withheld text, and the stop string found in it or None."""
        if self._matched is not None:
            return "", self._matched
        if self._found:
            return self._match(self._held)
        rest, self._held = self._held, ""
        self._lengths = [0] * len(self._stops)
        return rest, None

    def _advance(self, held: str, position: int) -> None:
        """Match every stop string against the character at `position`, and note the best complete one."""
        character = held[position]
        for index, (stop, table) in enumerate(zip(self._stops, self._tables, strict=True)):
            length = self._lengths[index]
            while length and stop[length] != character:
                length = table[length]
            if stop[length] == character:
                length += 1
            if length == len(stop):
                start = position + 1 - length
                if self._found is None or (start, length) < (self._found[0], len(self._found[1])):
                    self._found = (start, stop)
                length = table[length]
            self._lengths[index] = length

    def _earliest(self, end: int) -> int:
        """Start of the longest unfinished stop string in a text that ends at `end`."""
        return end - max(self._lengths)

    def _match(self, held: str) -> tuple[str, str]:
        assert self._found is not None
        start, self._matched = self._found
        self._held = ""
        return held[: start + len(self._matched) * self._include], self._matched

    def _release(self, held: str) -> tuple[str, None]:
        cut = self._earliest(len(held))
        self._held = held[cut:]
        if self._found:
            self._found = (self._found[0] - cut, self._found[1])
        return held[:cut], None
