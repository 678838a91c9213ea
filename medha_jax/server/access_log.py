"""The access log: one line per call, without any part of the prompt or the output."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from medha_jax.engine import FirstToken, RequestTotals
from medha_jax.server.settings import LogFormat

LONGEST_MESSAGE = 300  # characters
PLAIN = re.compile(r"[A-Za-z0-9_.:/\[\]%-]+")  # values that need no quotes


@dataclass
class Record:
    """A call's entry in the log, owned by the coroutine that serves it. Times are in ms; None if unknown."""

    method: str
    peer: str
    tenant: str = ""
    request_id: str = ""
    code: str = "OK"
    reason: str = ""
    message: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    queue_ms: float | None = None
    ttft_ms: float | None = None
    e2e_ms: float | None = None
    priority: int | None = None  # None where none is stated
    accepted: bool | None = None  # whether the engine took the request; None for other calls

    def began(self, first: FirstToken) -> None:
        """Take over the times of a first token."""
        self.queue_ms, self.ttft_ms = 1000 * first.queue_s, 1000 * first.ttft_s

    def finished(self, request: RequestTotals) -> None:
        """Take over the figures of a finished request."""
        self.reason = request.finish_reason
        self.prompt_tokens, self.cached_tokens = request.prompt_tokens, request.cached_tokens
        self.output_tokens = request.output_tokens


class AccessLog:
    """Writes the records as lines of `form`, through `write`; `now` gives seconds since 1970."""

    def __init__(self, form: LogFormat, write: Callable[[str], None], now: Callable[[], float]) -> None:
        self._form, self._write, self._now = form, write, now

    def end(self, record: Record) -> None:
        """Write the record of a call that is over; "off" writes none."""
        if self._form == "off":
            return
        time = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds")
        values = {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in asdict(record).items()
            if value not in ("", None) and name != "accepted"
        }
        if "message" in values:
            values["message"] = record.message[:LONGEST_MESSAGE]
        if self._form == "json":
            self._write(json.dumps({"time": time} | values))
        else:
            quoted = {
                name: json.dumps(value) if isinstance(value, str) and not PLAIN.fullmatch(value) else value
                for name, value in values.items()
            }
            self._write(" ".join([time, *(f"{name}={value}" for name, value in quoted.items())]))
