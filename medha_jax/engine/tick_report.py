"""What a tick did and what an engine has to do: frozen data for metrics, for the schedule trace and for clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medha_jax.engine.flight import DispatchedTick, TickTimes
from medha_jax.scheduler.scheduler import QueueStats, Scheduler


@dataclass(frozen=True)
class ChunkReport:
    """What one pipeline stage computed of one request in a tick.

    Args:
        number: of the request.
        stage: of the pipeline; a chunk is in one after the other.
        groups: KV groups that hold the request so far; the last one owns the chunk.
        start: position of its first token.
        length: tokens.
        decode: whether its token was sampled by the tick before, and not known when it was planned.
        slack: relative slack of the request when the chunk was planned, NaN for tokens after the first.
        first: whether it is the first one of the request, in the first stage.
    """

    number: int
    stage: int
    groups: tuple[int, ...]
    start: int
    length: int
    decode: bool
    slack: float
    first: bool


@dataclass(frozen=True)
class TickReport:
    """One tick. Times are in seconds of the engine's clock; pages are those of each KV group.

    Args:
        started: when it was dispatched, or the one before it had ended, if that was later.
        ended: when its results were there.
        timed: whether these are the times of this tick alone. A tick that no chunk leaves is not waited for.
        predicted: seconds that the time model gave it.
        chunks: of all stages.
        bucket: rows it was compiled for: own decodes and prompt tokens, and shared ones.
        padding: share of all rows on all stages and groups that held no token.
        running: requests that hold pages, after it.
        waiting: requests that do not.
        free_pages: pages without content.
        cached_pages: pages that no request holds and the prefix cache knows.
        held_pages: pages of running requests.
        preempted: requests that lost their pages for its plan.
        cancelled: requests that were cancelled since the tick before.
    """

    started: float
    ended: float
    timed: bool
    predicted: float
    chunks: tuple[ChunkReport, ...]
    bucket: tuple[int, ...]
    padding: float
    running: int
    waiting: int
    free_pages: tuple[int, ...]
    cached_pages: tuple[int, ...]
    held_pages: tuple[int, ...]
    preempted: tuple[int, ...]
    cancelled: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Load(QueueStats):
    """What an engine has to do, and what it has for it.

    Args:
        slots: requests that can run at once.
        total_pages: of each KV group.
        healthy: whether it serves: no error has made the runtime unusable.
        draining: whether it takes no new requests.
    """

    slots: int
    total_pages: int
    healthy: bool = True
    draining: bool = False


def report_tick(
    tick: DispatchedTick, times: TickTimes, scheduler: Scheduler, total_pages: int, cancelled: Sequence[int]
) -> TickReport:
    """Put together what a tick did.

    Args:
        tick: that was read.
        times: when it ran.
        scheduler: as it is after the tick.
        total_pages: of each group.
        cancelled: since the tick before.
    """
    stages, entering = tick.stages, tick.stages[0]
    stats = scheduler.stats
    groups = len(stats.free_pages)
    chunks = [
        ChunkReport(
            number=state.number,
            stage=stage,
            groups=chunk.groups,
            start=chunk.start,
            length=chunk.length,
            decode=math.isnan(slack),
            slack=slack,
            first=not stage and state.number in tick.first,
        )
        for stage, planned in enumerate(stages)
        for state, chunk, slack in zip(planned.states, planned.plan.chunks, planned.slacks, strict=True)
    ]
    rows = sum(entering.sizes) * groups * len(stages)
    used = sum(chunk.length * (groups if len(chunk.groups) > 1 else 1) for chunk in chunks)
    free, cached = stats.free_pages, stats.cached_pages
    return TickReport(
        started=times.started,
        ended=times.ended,
        timed=times.timed,
        predicted=entering.seconds,
        chunks=tuple(chunks),
        bucket=entering.sizes,
        padding=1 - used / rows if rows else 0.0,
        running=stats.running,
        waiting=stats.waiting,
        free_pages=tuple(all_free - known for all_free, known in zip(free, cached, strict=True)),
        cached_pages=cached,
        held_pages=tuple(total_pages - pages for pages in free),
        preempted=tuple(state.number for state in entering.preempted),
        cancelled=tuple(cancelled),
    )
