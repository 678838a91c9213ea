"""One request and its result, as the client saw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "cancelled", "failed", "unfinished"]
Counted = Literal["ids", "usage", "chunks"]


@dataclass(frozen=True)
class RequestRecord:
    """One request of a run. Times are in seconds since the run's start, on one monotonic or virtual clock.

    Args:
        index: place in the workload, from 0.
        kind: class of requests that is reported separately, such as "short", "long" or "probe".
        prompt_tokens: tokens sent.
        output_tokens: tokens requested.
        due: planned time of sending; with limited concurrency, not before a place was free.
        sent: time of sending; `sent - due` is the client's own lateness.
        outputs: (time, tokens) of each message with tokens, in order.
        ended: end of the stream; end of the run if "unfinished".
        status: "cancelled" is by the client; "failed" covers all errors.
        error: one line for a failed request.
        deadline_s: seconds from `sent` to the first token that the SLO allows; None without one.
        tpot_slo_s: seconds per output token that the SLO allows; None without one.
        alone_s: seconds of the prefill alone, if known.
        cached_tokens: prompt tokens from the server's prefix cache, if reported.
        preemptions: number of preemptions, if reported.
        queue_s: seconds in the server before the first chunk, if reported.
        counted: source of the token counts: token ids, the server's total spread over its messages ("usage"), or one
            token a message ("chunks").
        priority: its class; a lower one goes first.
    """

    index: int
    kind: str
    prompt_tokens: int
    output_tokens: int
    due: float
    sent: float
    outputs: Sequence[tuple[float, int]]
    ended: float
    status: Status
    error: str | None = None
    deadline_s: float | None = None
    tpot_slo_s: float | None = None
    alone_s: float | None = None
    cached_tokens: int | None = None
    preemptions: int | None = None
    queue_s: float | None = None
    counted: Counted = "ids"
    priority: int = 0
