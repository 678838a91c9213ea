"""The loop between requests and the runtime: plan, submit, collect, deliver."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from medha_jax.config import SchedulerConfig
from medha_jax.engine.admission import check_request
from medha_jax.engine.events import Completion, Delta, Failed, Finished, GenerationRequest, Prefilled, TokenLogprobs
from medha_jax.kv.allocator import OutOfPagesError
from medha_jax.kv.groups import GroupedPages
from medha_jax.plan import Chunk, InvalidRequestError, StepPlan
from medha_jax.runtime import Executor, TokenResult
from medha_jax.scheduler.chunking import chunk_lengths
from medha_jax.scheduler.draft import Planned
from medha_jax.scheduler.request import Request, RequestState
from medha_jax.scheduler.scheduler import Scheduler
from medha_jax.scheduler.shapes import Shapes
from medha_jax.scheduler.work import TickWork, TimeModel

Event = Prefilled | Delta | Finished | Failed


class Output(Protocol):
    """What a request's tokens are turned into; `RequestOutput` makes text of them."""

    @property
    def token_ids(self) -> Sequence[int]:
        """Every token so far."""

    @property
    def finished(self) -> bool:
        """Whether the generation is over."""

    def push(self, token_id: int, logprobs: TokenLogprobs | None = None) -> Delta | None:
        """Take the next token; returns what to report of it, if anything."""

    def completion(
        self, *, ttft_s: float, tpot_s: float | None, chunks: tuple[int, ...], preemptions: int
    ) -> Completion:
        """The finished generation with its timings."""


OutputFactory = Callable[[GenerationRequest, int], Output]
"""Makes the output of a request from it and the tokens that fit the context after its prompt."""


@dataclass(slots=True)
class _Generation:
    """What the engine keeps of a request: its output, and when things happened, in seconds."""

    request: GenerationRequest
    output: Output
    arrival: float
    first_token: float = math.nan
    reported: int = 0


def scheduler_for(executor: Executor, config: SchedulerConfig, model: TimeModel) -> Scheduler:
    """A scheduler over everything that an executor has."""
    mesh = executor.config.mesh
    config = dataclasses.replace(config, prefix_cache=config.prefix_cache and executor.prefix_cacheable)
    shapes = Shapes(
        own=mesh.buckets,
        shared=mesh.shared_buckets or mesh.buckets,  # without shared shapes no request is spread
        groups=mesh.kvp,
        per_group=executor.per_group,
        page_size=mesh.page_size,
        stages=mesh.spp,
        slots=executor.config.slots,
        context=executor.context,
    )
    pages = GroupedPages(mesh.kvp, executor.pages, mesh.page_size, executor.per_group, prefix_cache=config.prefix_cache)
    return Scheduler(config, shapes, pages, model)


class Engine:
    """Runs requests together as its scheduler plans them; owned by one thread.

    Args:
        executor: runs the plans; nobody else submits any.
        scheduler: of `scheduler_for` this executor.
        model: told what each tick took.
        clock: seconds, monotonic.
        outputs: makes each request's output.
        on_result: sees every chunk's raw result (for tests that look at logits).
    """

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        model: TimeModel,
        clock: Callable[[], float],
        outputs: OutputFactory,
        on_result: Callable[[int, TokenResult], None] | None = None,
    ) -> None:
        self._executor, self._scheduler, self._model = executor, scheduler, model
        self._clock, self._outputs, self._on_result = clock, outputs, on_result
        self._generations: dict[int, _Generation] = {}
        stages = executor.config.mesh.spp
        nothing = Planned(StepPlan(()), (), (), (), (), TickWork(), 0.0)
        self._flight: deque[Planned] = deque([nothing] * (stages - 1))
        self._waited = True

    @property
    def busy(self) -> bool:
        """Whether any request is not finished, or has chunks in flight that nobody wants any more."""
        return self._scheduler.busy

    @property
    def free_pages(self) -> int:
        """Pages of all groups that no request holds."""
        return sum(self._scheduler.free_pages)

    @property
    def scheduler(self) -> Scheduler:
        """Who plans."""
        return self._scheduler

    def add(self, request: GenerationRequest, arrival_s: float | None = None) -> int:
        """Queue a request and return its number.

        Args:
            request: what is asked for.
            arrival_s: when it came, if not now.

        Raises:
            InvalidRequestError: the prompt is empty, beyond the vocabulary, or cannot fit; nothing was queued.
            QueueFullError: too many requests wait; nothing was queued.
        """
        context, prompt = self._executor.context, len(request.prompt_ids)
        check_request(request, self._executor.arch.vocab, context)
        largest = self._executor.config.mesh.buckets.prefill[-1]
        if request.chunks is not None and max(chunk_lengths(prompt, request.chunks)) > largest:
            raise InvalidRequestError(f"chunk sizes are {request.chunks}; allowed are 1 to {largest} tokens")
        sampling = request.sampling
        arrival = self._clock() if arrival_s is None else arrival_s
        wanted = Request(
            prompt=request.prompt_ids,
            max_tokens=min(sampling.max_tokens or context, context - prompt),
            arrival_s=arrival,
            slo=request.slo,
            deadline_s=request.deadline_s,
            on_deadline=request.on_deadline,
            cache_salt=request.cache_salt,
            chunks=request.chunks,
            counts_tokens=(sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
            != (1, 0, 0),
        )
        try:
            number = self._scheduler.add(wanted)
        except OutOfPagesError as error:
            raise InvalidRequestError(f"prompt and output: {error}") from None
        self._generations[number] = _Generation(request, self._outputs(request, context - prompt), arrival)
        return number

    def cancel(self, number: int) -> None:
        """End a request that nobody wants any more; no event of it follows. One that is at its end is ignored."""
        self._scheduler.cancel(number)
        self._generations.pop(number, None)

    def step(self) -> list[tuple[int, Event]]:
        """Run one tick; returns what it brought, as (request number, event).

        The last event of every request is `Finished` or `Failed`. With nothing to run, nothing is submitted.
        """
        planned = self._scheduler.plan(self._clock())
        events: list[tuple[int, Event]] = []
        for state in planned.expired:
            del self._generations[state.number]
            events.append((state.number, Failed("deadline", "the deadline has passed")))
        for state in planned.admitted:
            self._tell(state)
            holding = state.holding
            if holding is not None and holding.cached:
                self._executor.adopt(state.slot, holding.groups[0], holding.adopted)
        for state in planned.joining:
            self._tell(state)
        if not planned.states and not any(flying.states for flying in self._flight):
            return events
        started = self._clock()
        handle = self._executor.submit(planned.plan)
        self._flight.append(planned)
        leaving = self._flight.popleft()
        results = self._executor.collect(handle)
        now = self._clock()
        self._learn(planned.work, now - started, waited=bool(leaving.states))
        for state, chunk, result in zip(leaving.states, leaving.plan.chunks, results, strict=True):
            self._deliver(events, state, chunk, result, now)
        return events

    def _tell(self, state: RequestState) -> None:
        """Write a request's settings, and what is computed of it so far, into its slot on every group."""
        request = self._generations[state.number].request
        prompt = len(request.prompt_ids)
        ends = (*request.eos_ids, *request.sampling.stop_token_ids)
        # the newest token is counted when it is fed
        known = state.ids(0, state.computed)
        self._executor.admit(state.slot, request.sampling, prompt, ends, known[:prompt], known[prompt:])

    def _learn(self, work: TickWork, seconds: float, waited: bool) -> None:
        """Tell the time model of a tick, unless an earlier one may have been running still when it was submitted."""
        if waited and self._waited:
            self._model.observe(work, seconds)
        self._waited = waited

    def _deliver(
        self, events: list[tuple[int, Event]], state: RequestState, chunk: Chunk, result: TokenResult, now: float
    ) -> None:
        number = state.number
        if not self._scheduler.computed(state, chunk, result.token, now):
            return
        generation = self._generations[number]
        request, output = generation.request, generation.output
        if self._on_result is not None:
            self._on_result(number, result)
        if chunk.start < len(request.prompt_ids):
            done = min(chunk.end, len(request.prompt_ids))
            if done > generation.reported:  # after a preemption it is computed again
                generation.reported = done
                events.append((number, Prefilled(done, len(request.prompt_ids))))
        if not chunk.last:
            return
        if not result.finite:
            self.cancel(number)
            message = f"request {number}: the model's logits are not finite at {chunk.end} tokens"
            events.append((number, Failed("not_finite", message)))
            return
        if math.isnan(generation.first_token):
            generation.first_token = now
        logprobs = None
        if request.sampling.logprobs is not None:
            logprobs = TokenLogprobs(result.token, result.logprob, result.top[: request.sampling.logprobs])
        delta = output.push(result.token, logprobs)
        if delta is not None:
            events.append((number, delta))
        if output.finished:
            events.append((number, Finished(self._complete(generation, state, now))))
            self.cancel(number)

    def _complete(self, generation: _Generation, state: RequestState, now: float) -> Completion:
        first, tokens = generation.first_token, len(generation.output.token_ids)
        return generation.output.completion(
            ttft_s=first - generation.arrival,
            tpot_s=(now - first) / (tokens - 1) if tokens > 1 else None,
            chunks=tuple(state.chunks),
            preemptions=state.preemptions,
        )
