"""Server-sent events: the `data` fields of a stream of bytes.

Source: the HTML standard's section on interpreting an event stream. Lines end in LF, CR LF or CR. An empty line ends an
event. Several `data` lines of one event are joined by line feeds. Other fields are ignored.
"""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")
LONGEST_EVENT = 2**20  # bytes


class StreamError(ValueError):
    """The bytes are not a stream of events."""


class EventStream:
    """Collects bytes and returns the data of every complete event. Owns the incomplete rest."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def end(self) -> list[bytes]:
        """The data of an event whose empty line never came. The standard drops it; servers end with `[DONE]` so."""
        return self.feed(b"\n\n")

    def feed(self, received: bytes) -> list[bytes]:
        """The data of the events that end in these bytes, in order, without empty events.

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
