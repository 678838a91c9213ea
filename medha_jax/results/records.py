"""What one request asked for and what it got, as a client saw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "cancelled", "failed", "unfinished"]
Counted = Literal["ids", "usage", "chunks"]


@dataclass(frozen=True)
class RequestRecord:
    """One request of a run. All times are in seconds since the run's start, on one monotonic (or virtual) clock.

    Args:
        index: its place in the workload, from 0.
        kind: a class of requests that is reported on its own, such as "short", "long" or "probe".
        prompt_tokens: sent.
        output_tokens: asked for.
        due: when the workload wanted it sent; with limited concurrency not before its place was free.
        sent: when it was sent; `sent - due` is the client's own lateness.
        outputs: (time, tokens) of each message that brought tokens, in order.
        ended: when its stream ended, whatever way; when the run ended, where it is "unfinished".
        status: how it ended. "cancelled" is by the client's own will, "failed" is everything that went wrong.
        error: of a failed one, in a line.
        deadline_s: seconds from `sent` to the first token that its SLO allows; None without one.
        tpot_slo_s: seconds per output token that its SLO allows; None without one.
        alone_s: seconds of its prefill alone, where that is known.
        cached_tokens: of the prompt, taken from the server's prefix cache, where the server says so.
        preemptions: that the server reports.
        queue_s: seconds in the server before its first chunk, where the server says so.
        counted: what the tokens of `outputs` are counted by: token ids, the server's own total spread over its
            messages, or messages, one token each, where the server says nothing.
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
