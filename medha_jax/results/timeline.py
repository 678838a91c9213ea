"""The phases of requests over time, as bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medha_jax.results.records import RequestRecord, Status


@dataclass(frozen=True)
class Bar:
    """A phase of a request: a row, from `start` to `end` in seconds.

    `phase` is "waiting", "prefill" or "decode", or "waiting or prefill" if the server does not report `queue_s`.
    """

    row: int
    start: float
    end: float
    kind: str
    phase: str


def bars(records: Sequence[RequestRecord]) -> list[Bar]:
    """Bars of every request, one row each, in the order of sending."""
    found: list[Bar] = []
    for row, record in enumerate(_in_order(records)):
        first, last = (record.outputs[0][0], record.outputs[-1][0]) if len(record.outputs) else (record.ended, None)
        began = None if record.queue_s is None else min(first, record.sent + record.queue_s)
        if began is None:
            found.append(Bar(row, record.sent, first, record.kind, "waiting or prefill"))
        else:
            found.append(Bar(row, record.sent, began, record.kind, "waiting"))
            found.append(Bar(row, began, first, record.kind, "prefill"))
        if last is not None:
            found.append(Bar(row, first, last, record.kind, "decode"))
    return [bar for bar in found if bar.end > bar.start]


def marks(records: Sequence[RequestRecord], status: Status) -> list[tuple[float, int]]:
    """End of each request with a status: seconds and row."""
    return [(record.ended, row) for row, record in enumerate(_in_order(records)) if record.status == status]


def _in_order(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    return sorted(records, key=lambda record: (record.sent, record.index))
