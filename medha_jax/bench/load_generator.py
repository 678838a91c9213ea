"""Sending requests at their due times, whatever the server does meanwhile, and noting what each one got."""

from __future__ import annotations

import asyncio
import gc
import statistics
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from medha_jax.bench.backend import Backend, Prompt, Reply, RequestFailedError, Wanted
from medha_jax.results import Outputs, RequestRecord, Status
from medha_jax.workload import Request, Slos, Workload

LEAD_S = 0.5  # before a request is due it is prepared
AHEAD = 256  # requests at most that are prepared and not sent
TAKEN_S = 0.05  # that a request which is given up at once waits for the server to take it
LATEST = 1000  # first tokens that the median shown while it runs is of


class GivenUpError(Exception):
    """The client itself ends a request, as the workload wanted."""


@dataclass(frozen=True)
class LoadSettings:
    """How requests are sent.

    Args:
        slos: deadlines of a request.
        alone: seconds that a prompt of so many tokens takes alone, None where that is not known.
        tell_slos: whether the server is told the deadlines.
        max_concurrency: requests that are sent and not ended, at most.
        timeout_s: seconds after which a request without an end has failed.
    """

    slos: Slos = field(default_factory=Slos)
    alone: Callable[[int], float] | None = None
    tell_slos: bool = True
    max_concurrency: int | None = None
    timeout_s: float | None = None


class Tally:
    """Counts of a run, for who watches it. Owned by the load generator.

    Args:
        total: requests that will be sent.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.sent = self.tokens = 0
        self.ended: dict[Status, int] = {"ok": 0, "cancelled": 0, "failed": 0, "unfinished": 0}
        self.error: str | None = None
        self._ttfts = array("d")

    @property
    def running(self) -> int:
        """Sent, and not ended."""
        return self.sent - sum(self.ended.values())

    @property
    def ttft_s(self) -> float | None:
        """Median TTFT of the latest requests, None before the first."""
        return statistics.median(self._ttfts[-LATEST:]) if self._ttfts else None

    def first_token(self, seconds: float) -> None:
        """Note a TTFT."""
        self._ttfts.append(seconds)


class LoadGenerator:
    """Sends the requests of a workload: an open loop, in which no request waits for the end of another.

    Each request has a task of its own, which is started a moment before the request is due. Owner of the tasks.

    Args:
        workload: what to send, when, and its prompts.
        requests: those of the workload to send, by due time.
        backend: the way to the server.
        settings: how to send.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        workload: Workload,
        requests: Sequence[Request],
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
        """Send everything and wait for the ends; records are in the order of the requests.

        After `stop`, those of the requests that were sent.
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
        """Send nothing more, and end what runs: it is unfinished."""
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
        """What fails is noted; what gets here is a defect of this program, which must not go unseen."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._defect = self._defect or task.exception()
            self.stop()

    async def _one(self, request: Request) -> None:
        """A request's way: prepared, sent when it is due, read to its end, noted."""
        wanted, prompt = self._wanted(request), self._prompt(request)
        prepared: Any = None
        error: str | None = None
        try:
            prepared = await self._backend.prepare(prompt, wanted)
        except Exception as problem:
            error = f"cannot be sent: {_named(problem)}"
        await self._until(request.at)
        due = request.at
        if self._places.locked():
            await self._places.acquire()
            due = max(due, self._now())
        else:
            await self._places.acquire()
        self._ahead.release()
        try:
            await self._send(request, due, prepared, error)
        finally:
            self._places.release()

    async def _send(self, request: Request, due: float, prepared: Any, error: str | None) -> None:
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
        request: Request,
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
            )
        )
        self.tally.ended[status] += 1
        self.tally.error = self.tally.error or error

    def _wanted(self, request: Request) -> Wanted:
        if not self._settings.tell_slos:
            return Wanted(request.output_tokens)
        slos = self._settings.slos
        return Wanted(request.output_tokens, slos.deadline_s(self._alone(request)), slos.tpot_s)

    def _alone(self, request: Request) -> float | None:
        alone, tokens = self._settings.alone, request.prompt_tokens
        return None if alone is None or tokens is None else alone(tokens)

    def _prompt(self, request: Request) -> Prompt:
        return request.text if request.text is not None else self._workload.token_ids(request)

    def _now(self) -> float:
        return self._clock() - self._began

    async def _until(self, seconds: float) -> None:
        """Wait for a moment of the run. The event loop wakes within a millisecond after it, if it is free."""
        while (left := seconds - self._now()) > 0:
            await asyncio.sleep(left)


def _judged(request: Request, outputs: Outputs, reply: Reply) -> tuple[Status, str | None]:
    """Whether a stream that ended well brought anything."""
    if outputs or not request.output_tokens:
        return "ok", None
    return "failed", f"the stream ended well and without a token; the server counts {reply.output_tokens or 0}"


def _named(error: Exception) -> str:
    """An error that nobody expected, in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def calm_collector() -> Iterator[None]:
    """Keep the garbage collector from stopping everything for long: it looks at nothing that is there already."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
