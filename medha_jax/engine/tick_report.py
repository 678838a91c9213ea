"""Reports of a tick and of an engine's load: frozen data for metrics, the schedule trace and clients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from medha_jax.engine.flight import DispatchedTick, TickTimes
from medha_jax.engine.request_ledger import RequestCounts
from medha_jax.plan import Chunk
from medha_jax.scheduler.request import RequestState
from medha_jax.scheduler.scheduler import QueueStats, Scheduler


@dataclass(frozen=True)
class ChunkReport:
    """A chunk of one request in one pipeline stage of a tick.

    Args:
        number: of the request.
        stage: of the pipeline; a chunk passes all stages in turn.
        groups: KV groups that hold the request so far; the last one owns the chunk.
        start: position of its first token.
        length: in tokens.
        decode: whether it feeds a token that an earlier tick has sampled.
        slack: relative slack of the request when the chunk was planned; NaN for decodes.
        first: whether it is the request's first chunk and in the first stage.
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
    """One tick or slice. Times are in seconds of the engine's clock; pages are those of each KV group.

    Args:
        started: when it was dispatched, or when the tick before it ended, if later.
        ended: when its results had come.
        timed: whether these are the times of this tick alone. The engine does not wait for a tick that no chunk leaves.
        predicted: seconds predicted by the time model.
        chunks: of all stages.
        bucket: compiled rows: own decodes, own prompt tokens, shared decodes, shared prompt tokens.
        padding: share of rows without a token, over all stages and groups.
        running: requests that hold pages, after the tick.
        waiting: requests without pages, after the tick.
        free_pages: pages that neither a request nor the prefix cache uses.
        cached_pages: pages in the prefix cache that no request holds.
        held_pages: pages that running requests have, or that are set aside for them.
        preempted: requests that lost their pages for its plan.
        lost_tokens: tokens whose KV they lost.
        copied: pages that went to host memory before it, and that came back, since the tick before.
        cancelled: requests cancelled since the tick before.
        layers: first and past the last layer of each stage, if it is a slice; None for a tick.
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
    lost_tokens: int
    cancelled: tuple[int, ...]
    copied: tuple[int, int] = (0, 0)
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class TenantLoad:
    """One tenant's open requests: those that hold pages, those that do not, and the tokens for which these wait."""

    running: int
    waiting: int
    waiting_tokens: int


@dataclass(frozen=True, kw_only=True)
class Load(QueueStats):
    """An engine's requests, slots and pages.

    Args:
        slots: outputs that can run at once.
        total_pages: of each KV group.
        healthy: whether no error has made the runtime unusable.
        draining: whether it takes no new requests.
        counts: requests since the start, if a service runs the engine.
        by_tenant: of each tenant with open requests, if a service runs the engine.
    """

    slots: int
    total_pages: int
    healthy: bool = True
    draining: bool = False
    counts: RequestCounts = field(default_factory=RequestCounts)
    by_tenant: Mapping[str, TenantLoad] = field(default_factory=dict)


def report_tick(
    tick: DispatchedTick,
    times: TickTimes,
    scheduler: Scheduler,
    total_pages: int,
    cancelled: Sequence[int],
    copied: tuple[int, int],
) -> TickReport:
    """The report of a tick that was read, with the scheduler's state after it.

    `total_pages` are those of each group; `cancelled` are the requests cancelled since the tick before, and `copied`
    the pages copied since.
    """
    planned, step = tick.planned, tick.planned.step
    stats = scheduler.stats
    groups = len(stats.free_pages)
    stages = list(_chunks(tick))
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
        for stage, held in enumerate(stages)
        for state, chunk, slack in held
    ]
    rows = sum(planned.sizes) * groups * len(stages)
    used = sum(chunk.length * (groups if len(chunk.groups) > 1 else 1) for chunk in chunks)
    free, cached = stats.free_pages, stats.cached_pages
    return TickReport(
        started=times.started,
        ended=times.ended,
        timed=times.timed,
        predicted=planned.seconds,
        chunks=tuple(chunks),
        bucket=planned.sizes,
        padding=1 - used / rows if rows else 0.0,
        running=stats.running,
        waiting=stats.waiting,
        free_pages=tuple(all_free - known for all_free, known in zip(free, cached, strict=True)),
        cached_pages=cached,
        held_pages=tuple(total_pages - pages for pages in free),
        preempted=tuple(state.number for state in planned.preempted),
        lost_tokens=planned.lost_tokens,
        cancelled=tuple(cancelled),
        copied=copied,
        layers=None if step is None else (step.slice.first, step.slice.past),
    )


def _chunks(tick: DispatchedTick) -> Iterator[list[tuple[RequestState, Chunk, float]]]:
    """Request, chunk and slack of every chunk in each stage."""
    if (step := tick.planned.step) is None:
        for planned in tick.stages:
            yield list(zip(planned.states, planned.plan.chunks, planned.slacks, strict=True))
    else:
        for states, plan, slacks in zip(step.states, step.slice.stages, step.slacks, strict=True):
            yield list(zip(states, plan.chunks, slacks, strict=True))
