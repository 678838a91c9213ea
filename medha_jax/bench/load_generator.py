"""Sends requests at their due times, independent of the server's progress, and records the results."""

from __future__ import annotations

import asyncio
import statistics
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from medha_jax.bench.backend import Backend, Prompt, Reply, RequestFailedError, Wanted
from medha_jax.collector import calm_collector
from medha_jax.results import Outputs, RequestRecord, Status
from medha_jax.workload import Slos, Workload, WorkloadRequest

LEAD_S = 0.5  # a request is prepared this long before it is due
AHEAD = 256  # most prepared requests that are not yet sent
TAKEN_S = 0.05  # longest wait for the server to accept a request that is cancelled at once
LATEST = 1000  # the median TTFT shown during a run is of this many latest requests


class GivenUpError(Exception):
    """The client cancels a request because the workload says so."""


@dataclass(frozen=True)
class LoadSettings:
    """How requests are sent.

    Args:
        slos: deadlines of a request.
        alone: seconds of a prompt alone, by its tokens; None if unknown.
        tell_slos: tell the server the deadlines.
        max_concurrency: most requests in flight; None for no limit.
        timeout_s: a request that runs longer has failed; None for no limit.
    """

    slos: Slos = field(default_factory=Slos)
    alone: Callable[[int], float] | None = None
    tell_slos: bool = True
    max_concurrency: int | None = None
    timeout_s: float | None = None


class Tally:
    """Counts of a run, for display. Owned by the load generator.

    Args:
        total: number of requests to send.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.sent = self.tokens = 0
        self.ended: dict[Status, int] = {"ok": 0, "cancelled": 0, "failed": 0, "unfinished": 0}
        self.error: str | None = None
        self._ttfts = array("d")

    @property
    def running(self) -> int:
        """Requests in flight."""
        return self.sent - sum(self.ended.values())

    @property
    def ttft_s(self) -> float | None:
        """Median TTFT of the latest requests; None before the first."""
        return statistics.median(self._ttfts[-LATEST:]) if self._ttfts else None

    def first_token(self, seconds: float) -> None:
        """Record a TTFT."""
        self._ttfts.append(seconds)


class LoadGenerator:
    """Sends the requests of a workload in an open loop: no request waits for another to end.

    Each request has its own task, started LEAD_S before the request is due. Owns the tasks.

    Args:
        workload: source of the prompts.
        requests: requests of the workload to send, by due time.
        backend: connection to the server.
        settings: how to send.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        workload: Workload,
        requests: Sequence[WorkloadRequest],
        backend: Backend,
        settings: LoadSettings,
        clock: Callable[[], float],
    ) -> None:
        self.tally = Tally(len(requests))
        self._workload, self._requests, self._backend = workload, requests, backend
        self._settings, self._clock = settings, clock
        self._began = 0.0
        self._records: list[RequestRecord] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(settings.max_concurrency or len(requests) or 1)
        self._ahead = asyncio.Semaphore(AHEAD)
        self._pacer: asyncio.Task[None] | None = None
        self._stopped = False
        self._defect: BaseException | None = None

    async def run(self) -> tuple[RequestRecord, ...]:
        """Send all requests and wait for their ends; returns records in the order of the requests.

        After `stop`, only the requests that were sent have a record.
        """
        self._began = self._clock() + LEAD_S
        with calm_collector():
            self._pacer = asyncio.create_task(self._pace())
            await asyncio.wait([self._pacer])
            if not self._pacer.cancelled():
                self._pacer.result()
            while self._tasks:
                await asyncio.wait(self._tasks)
        if self._defect is not None:
            raise self._defect
        return tuple(sorted(self._records, key=lambda record: record.index))

    def stop(self) -> None:
        """Send no more requests; those in flight end as unfinished."""
        self._stopped = True
        for task in (self._pacer, *self._tasks):
            if task is not None:
                task.cancel()

    async def _pace(self) -> None:
        for request in self._requests:
            await self._until(request.at - LEAD_S)
            await self._ahead.acquire()
            task = asyncio.create_task(self._one(request))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Stop the run on an exception of a task: failed requests are recorded, so it is a defect of this program."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._defect = self._defect or task.exception()
            self.stop()

    async def _one(self, request: WorkloadRequest) -> None:
        """Prepare a request, send it when it is due, read it to its end, record it."""
        wanted, prompt = self._wanted(request), self._prompt(request)
        prepared: Any = None
        error: str | None = None
        try:
            prepared = await self._backend.prepare(prompt, wanted)
        except Exception as problem:
            error = f"cannot be sent: {_named(problem)}"
        await self._until(request.at)
        full = self._places.locked()
        await self._places.acquire()
        due = max(request.at, self._now()) if full else request.at
        self._ahead.release()
        try:
            await self._send(request, due, prepared, error)
        finally:
            self._places.release()

    async def _send(self, request: WorkloadRequest, due: float, prepared: Any, error: str | None) -> None:
        outputs, sent = Outputs(), self._now()
        tally, limit = self.tally, request.cancel_after
        tally.sent += 1
        heard_tokens = 0

        def taken() -> None:
            if limit == 0:
                raise GivenUpError

        def heard(tokens: int) -> None:
            nonlocal heard_tokens
            now = self._now()
            if not heard_tokens:
                tally.first_token(now - sent)
            outputs.add(now, tokens)
            heard_tokens += tokens
            tally.tokens += tokens
            if limit is not None and heard_tokens >= limit:
                raise GivenUpError

        reply: Reply | None = None
        status: Status = "failed"
        patience = self._settings.timeout_s
        try:
            if error is None:
                async with asyncio.timeout(TAKEN_S if limit == 0 else patience):
                    reply = await self._backend.send(prepared, taken, heard)
                status, error = _judged(request, outputs, reply)
        except GivenUpError:
            status = "cancelled"
        except TimeoutError:
            if limit == 0:
                status = "cancelled"
            else:
                error = f"no end within {patience:g} s"
        except RequestFailedError as problem:
            error = str(problem)
        except asyncio.CancelledError:
            if not self._stopped:
                raise
            status = "unfinished"
        except Exception as problem:
            error = _named(problem)
        self._note(request, due, sent, outputs, status, error, reply)

    def _note(
        self,
        request: WorkloadRequest,
        due: float,
        sent: float,
        outputs: Outputs,
        status: Status,
        error: str | None,
        reply: Reply | None,
    ) -> None:
        said = reply or Reply("ids" if self._backend.name == "grpc" else "chunks")
        if said.counted == "usage" and said.output_tokens is not None:
            outputs.spread(said.output_tokens)
        tokens = request.prompt_tokens if request.prompt_tokens is not None else said.prompt_tokens or 0
        alone = self._alone(request)
        self._records.append(
            RequestRecord(
                index=request.index,
                kind=request.kind,
                prompt_tokens=tokens,
                output_tokens=request.output_tokens,
                due=due,
                sent=sent,
                outputs=outputs,
                ended=self._now(),
                status=status,
                error=error,
                deadline_s=self._settings.slos.deadline_s(alone),
                tpot_slo_s=self._settings.slos.tpot_s,
                alone_s=alone,
                cached_tokens=said.cached_tokens,
                preemptions=said.preemptions,
                queue_s=said.queue_s,
                counted=said.counted,
                priority=request.priority,
            )
        )
        self.tally.ended[status] += 1
        self.tally.error = self.tally.error or error

    def _wanted(self, request: WorkloadRequest) -> Wanted:
        if not self._settings.tell_slos:
            return Wanted(request.output_tokens, priority=request.priority)
        slos = self._settings.slos
        return Wanted(request.output_tokens, slos.deadline_s(self._alone(request)), slos.tpot_s, request.priority)

    def _alone(self, request: WorkloadRequest) -> float | None:
        alone, tokens = self._settings.alone, request.prompt_tokens
        return None if alone is None or tokens is None else alone(tokens)

    def _prompt(self, request: WorkloadRequest) -> Prompt:
        return request.text if request.text is not None else self._workload.token_ids(request)

    def _now(self) -> float:
        return self._clock() - self._began

    async def _until(self, seconds: float) -> None:
        """Wait until a time of the run. A free event loop wakes within a millisecond after it."""
        while (left := seconds - self._now()) > 0:
            await asyncio.sleep(left)


def _judged(request: WorkloadRequest, outputs: Outputs, reply: Reply) -> tuple[Status, str | None]:
    """Status and error of a stream that ended normally: it must have brought tokens."""
    if outputs or not request.output_tokens:
        return "ok", None
    return "failed", f"the stream ended well and without a token; the server counts {reply.output_tokens or 0}"


def _named(error: Exception) -> str:
    """An unexpected error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
