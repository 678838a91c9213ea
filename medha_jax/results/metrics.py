"""Metrics of one request, as defined in `FORMULAS`."""

from __future__ import annotations

import numpy as np

from medha_jax.results.outputs import Outputs
from medha_jax.results.records import RequestRecord

# Printed with every table, report and summary.
FORMULAS = {
    "TTFT": "sending to the first streamed output",
    "TPOT": "(E2EL - TTFT) / (output tokens - 1), of each request with two tokens or more",
    "ITL": "time between one streamed output and the next, of all requests together",
    "E2EL": "sending to the last streamed output",
    "normalised TTFT": "TTFT / seconds of the same prefill alone",
    "on time": "finished, TTFT within the deadline and TPOT within its objective, where a request has them",
    "attainment": "requests on time / requests that have an objective, without those the client cancelled and those "
    "that were still within their deadline when the run ended; failed ones are not on time",
    "goodput": "requests on time / seconds",
    "throughput": "finished requests, or their tokens, / seconds; seconds are from the first sending to the last end, "
    "or those of the window",
    "lateness": "actual sending - planned sending: the client's own delay",
}


def ttft(record: RequestRecord) -> float | None:
    """Seconds from sending to the first output; None without output."""
    return record.outputs[0][0] - record.sent if len(record.outputs) else None


def e2el(record: RequestRecord) -> float | None:
    """Seconds from sending to the last output; None without output."""
    return record.outputs[-1][0] - record.sent if len(record.outputs) else None


def tpot(record: RequestRecord) -> float | None:
    """Seconds for each output token after the first; None with fewer than two."""
    count = received(record)
    if count < 2:
        return None
    return (record.outputs[-1][0] - record.outputs[0][0]) / (count - 1)


def gaps(record: RequestRecord) -> np.ndarray:
    """Seconds between one output and the next `[outputs - 1]`."""
    return np.diff(Outputs.of(record.outputs).seconds)


def received(record: RequestRecord) -> int:
    """Number of received output tokens."""
    return Outputs.of(record.outputs).tokens


def waited(record: RequestRecord) -> float:
    """Seconds from sending to the first output, or to the end without one."""
    first = ttft(record)
    return record.ended - record.sent if first is None else first


def on_time(record: RequestRecord) -> bool | None:
    """Whether a request met its objectives.

    None if it has none, if the client cancelled it, or if it was unfinished and not yet late.
    """
    if record.status == "cancelled" or (record.deadline_s is None and record.tpot_slo_s is None):
        return None
    late = record.deadline_s is not None and waited(record) > record.deadline_s
    each = tpot(record)
    slow = record.tpot_slo_s is not None and each is not None and each > record.tpot_slo_s
    if record.status == "unfinished":
        return False if late else None
    return record.status == "ok" and not late and not slow
