"""Server-sent events: what a stream of bytes says in its `data` fields.

Source: the HTML standard's section on interpreting an event stream. Lines end in LF, CR LF or CR; an empty line ends an
event; several `data` lines of one event are joined by line feeds; fields other than `data` are not needed here.
"""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")
LONGEST_EVENT = 2**20  # bytes


class StreamError(ValueError):
    """Bytes that are no stream of events."""


class EventStream:
    """Takes bytes as they come, gives the data of every event that they complete. Owns what is incomplete."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    @property
    def pending(self) -> bool:
        """Whether an event was begun and not ended."""
        return bool(self._data or self._rest)

    def feed(self, received: bytes) -> list[bytes]:
        """The data of the events that end in these bytes, in order; events without data are left out.

        Raises:
            StreamError: an event is longer than LONGEST_EVENT.
        """
        text = self._rest + received
        # a CR at the end may be half of a CR LF
        held = text.endswith(b"\r")
        *lines, rest = _LINE_END.split(text[:-1] if held else text)
        self._rest = rest + b"\r" if held else rest
        complete: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                complete.append(b"\n".join(self._data))
                self._data.clear()
        if len(self._rest) + sum(map(len, self._data)) > LONGEST_EVENT:
            raise StreamError(f"an event has more than {LONGEST_EVENT:,} bytes")
        return complete
