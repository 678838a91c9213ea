"""Simulated requests as the records that benchmarks keep, so that both are judged and reported alike."""

from __future__ import annotations

from medha_jax.results import RequestRecord
from medha_jax.workload import WorkloadRequest


def record_of(
    index: int,
    request: WorkloadRequest,
    deadline_s: float,
    alone_s: float,
    first: float | None,
    finished: float | None,
    end: float,
) -> RequestRecord:
    """The record of a simulated request; all times are in seconds.

    `outputs` has at most two entries, the first token and the last. So it has no gaps between tokens, but TPOT, their
    mean, is exact.

    Args:
        deadline_s: from arrival to the first token.
        alone_s: of its prefill alone.
        first, finished: times of its first and last token; None if the simulation ended before.
        end: of the simulation.
    """
    outputs: list[tuple[float, int]] = [] if first is None else [(first, 1)]
    if finished is not None and request.output_tokens > 1:
        outputs.append((finished, request.output_tokens - 1))
    return RequestRecord(
        index=index,
        kind=request.kind,
        prompt_tokens=request.length,
        output_tokens=request.output_tokens,
        due=request.at,
        sent=request.at,
        outputs=tuple(outputs),
        ended=end if finished is None else finished,
        status="unfinished" if finished is None else "ok",
        deadline_s=deadline_s,
        alone_s=alone_s,
        priority=request.priority,
    )
