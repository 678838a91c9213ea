"""The loop between requests and the runtime: plan, submit, collect, deliver."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from medha_jax.engine.admission import check_ids, for_scheduler
from medha_jax.engine.events import Accepted, Event, Failed, FailReason, Finished, GenerationRequest
from medha_jax.engine.flight import NOTHING, Flight
from medha_jax.engine.generation import Generation, OutputFactory
from medha_jax.engine.report import Load, TickReport, report_tick
from medha_jax.kv.allocator import OutOfPagesError
from medha_jax.plan import Chunk, InvalidRequestError
from medha_jax.runtime import Executor, TokenResult
from medha_jax.scheduler.plan_builder import Planned
from medha_jax.scheduler.request import RequestState, SchedulerRequest
from medha_jax.scheduler.scheduler import Scheduler, check_queue
from medha_jax.scheduler.time_model import TimeModel

PAUSE_S = 0.002  # while requests are there, nothing runs, and only time can change that
OnTick = Callable[[TickReport], None]
OnError = Callable[[Exception], None]


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
        self._executor, self._scheduler = executor, scheduler
        self._clock, self._outputs, self._on_result = clock, outputs, on_result
        self._generations: dict[int, Generation] = {}
        self._flight = Flight(executor, model, clock)
        self._cancelled: list[int] = []
        self._healthy = self._moved = True
        self._renewed = False  # and nothing was computed since

    @property
    def busy(self) -> bool:
        """Whether any request is not finished, or has chunks in flight that nobody wants any more."""
        return self._scheduler.busy

    @property
    def healthy(self) -> bool:
        """Whether it can run requests: no error has made the runtime unusable."""
        return self._healthy

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its output together."""
        return self._executor.context

    @property
    def free_pages(self) -> int:
        """Pages of all groups that no request holds."""
        return sum(self._scheduler.free_pages)

    @property
    def scheduler(self) -> Scheduler:
        """Who plans."""
        return self._scheduler

    @property
    def load(self) -> Load:
        """What it has to do now, and what it has for it."""
        scheduler = self._scheduler
        return Load(
            running=scheduler.running,
            waiting=scheduler.waiting,
            waiting_tokens=scheduler.waiting_tokens,
            slots=self._executor.config.slots,
            total_pages=self._executor.pages,
            free_pages=scheduler.free_pages,
            cached_pages=scheduler.cached_pages,
            healthy=self._healthy,
        )

    @property
    def rest_s(self) -> float:
        """Seconds for which another step would do nothing, if nobody asks for anything; infinite without requests."""
        if not self.busy:
            return math.inf
        if self._moved:
            return 0.0
        if self._scheduler.starved:
            return max(self._scheduler.next_expiry - self._clock(), PAUSE_S)
        return PAUSE_S

    def add(self, request: GenerationRequest, arrival_s: float | None = None) -> int:
        """Queue a request and return its number.

        Args:
            request: what is asked for.
            arrival_s: when it came, if not now.

        Raises:
            InvalidRequestError: the prompt is empty, beyond the vocabulary, or cannot fit; nothing was queued.
            QueueFullError: too many requests wait; nothing was queued.
        """
        wanted = self.prepare(request, self._clock() if arrival_s is None else arrival_s)
        self.check_queue(self._scheduler.waiting, self._scheduler.waiting_tokens, request)
        number = self._scheduler.next_number
        self.begin(number, request, wanted)
        return number

    def prepare(self, request: GenerationRequest, arrival: float) -> SchedulerRequest:
        """Check a request that came at `arrival` seconds, and translate it for `begin`. Any thread may ask.

        Raises:
            InvalidRequestError: it cannot run.
        """
        wanted = for_scheduler(request, self._executor, arrival)
        try:
            self._scheduler.check_pages(wanted)
        except OutOfPagesError as error:
            raise InvalidRequestError(f"prompt and output: {error}") from None
        return wanted

    def check_queue(self, waiting: int, tokens: int, request: GenerationRequest) -> None:
        """Check that a request may wait behind `waiting` others with so many tokens. Any thread may ask.

        Raises:
            QueueFullError: it may not.
        """
        check_queue(self._scheduler.config, waiting, tokens, len(request.prompt_ids))

    def check_ids(self, ids: Sequence[int]) -> None:
        """Check token ids of a prompt. Any thread may ask.

        Raises:
            InvalidRequestError: one is outside the vocabulary.
        """
        check_ids("token id", ids, self._executor.arch.vocab)

    def begin(self, number: int, request: GenerationRequest, wanted: SchedulerRequest) -> Accepted:
        """Queue a request that was prepared, under a number larger than those before."""
        generation = Generation(request, wanted.arrival_s)
        if request.prompt_bound is None:
            generation.output = self._outputs(request, self._executor.context - len(request.prompt_ids))
        elif not self._executor.prefix_cacheable:
            generation.held = list(request.prompt_ids)
        self._scheduler.enqueue(number, wanted)
        self._generations[number] = generation
        return Accepted(*self._scheduler.outlook(number, self._clock()))

    def extend(self, number: int, ids: Sequence[int], complete: bool) -> None:
        """More of a prompt that came in parts, perhaps the last of it; a request that is at its end is ignored.

        Args:
            number: of a request that was begun with a `prompt_bound`.
            ids: of the vocabulary, and within the bound; perhaps none.
            complete: whether no more follow.
        """
        generation = self._generations.get(number)
        if generation is None:
            return
        if not self._executor.prefix_cacheable:
            generation.held.extend(ids)
            ids = generation.held if complete else ()
        self._scheduler.extend(number, ids, complete)
        if complete:
            state = self._scheduler.state(number)
            prompt, most = state.request.prompt, state.request.max_tokens
            generation.request = dataclasses.replace(generation.request, prompt_ids=prompt, prompt_bound=None)
            generation.output = self._outputs(generation.request, most)
            if state.holding is not None:
                self._tell(state, state.scheduled)

    def cancel(self, number: int) -> None:
        """End a request that nobody wants any more; no event of it follows. One that is at its end is ignored."""
        if self._generations.pop(number, None) is not None:
            self._scheduler.cancel(number)
            self._cancelled.append(number)

    def step(self, on_tick: OnTick | None = None, on_error: OnError | None = None) -> list[tuple[int, Event]]:
        """Run one tick; returns what it brought, as (request number, event).

        The last event of every request is `Finished` or `Failed`. With nothing to run, nothing is submitted. Where
        ticks are dispatched ahead, what it brings is that of an earlier one.

        Args:
            on_tick: told of the tick whose results were read.
            on_error: told of errors, which end the requests of the tick; without it they are raised.
        """
        events: list[tuple[int, Event]] = []
        try:
            submitted = self._submit(events, on_error)
            collect = len(self._flight) > (self._scheduler.ahead if submitted else 0)
            if collect:
                self._collect(events, on_tick, on_error)
            self._moved = submitted or collect or bool(events)
        except Exception as error:
            if on_error is None:
                raise
            on_error(error)
            self._healthy = False
            events += self.end_all("internal", _message(error))
        return events

    def end_all(self, reason: FailReason, message: str) -> list[tuple[int, Event]]:
        """End every request, those in flight without their results; to be called when nothing will run any more."""
        numbers = list(self._generations)
        for number in numbers:
            self._end(number)
        for planned in self._flight.plans:
            self._abandon(planned)
        self._flight.clear()
        return [(number, Failed(reason, message)) for number in numbers]

    def _submit(self, events: list[tuple[int, Event]], on_error: OnError | None) -> bool:
        """Plan the next tick and dispatch it, if there is anything to run."""
        now = self._clock()
        planned = self._scheduler.plan(now)
        for state in planned.expired:
            del self._generations[state.number]
            events.append((state.number, Failed("deadline", "the deadline has passed")))
        first = self._note_first(planned, now)
        try:
            self._announce(planned)
            if not planned.states and not self._flight.entered:
                return False
            self._flight.submit(planned, first)
        except Exception as error:
            if self._without(planned, (*planned.states, *planned.admitted), error, events, on_error):
                self._flight.submit(NOTHING, frozenset())  # the other stages go on
        return True

    def _note_first(self, planned: Planned, now: float) -> frozenset[int]:
        """Requests whose first chunk is in a plan."""
        first = []
        for state in planned.states:
            generation = self._generations[state.number]
            if math.isnan(generation.first_chunk):
                generation.first_chunk = now
                generation.cached = state.holding.cached if state.holding is not None else 0
                first.append(state.number)
        return frozenset(first)

    def _announce(self, planned: Planned) -> None:
        """Tell the executor of the requests that a plan admits, and of those that another group joins."""
        for state in planned.admitted:
            self._tell(state, state.computed)
            holding = state.holding
            if holding is not None and holding.cached:
                self._executor.adopt(state.slot, holding.groups[0], holding.adopted)
        for state in planned.joining:
            self._tell(state, state.computed)

    def _tell(self, state: RequestState, done: int) -> None:
        """Write a request's settings, and its first `done` tokens, into its slot on every group."""
        request = self._generations[state.number].request
        # positions of an incomplete prompt are all the prompt's
        prompt = state.request.reserved or len(state.request.prompt)
        ends = (*request.eos_ids, *request.sampling.stop_token_ids)
        # the newest token is counted when it is fed
        known = state.ids(0, done)
        self._executor.admit(state.slot, request.sampling, prompt, ends, known[:prompt], known[prompt:])

    def _collect(self, events: list[tuple[int, Event]], on_tick: OnTick | None, on_error: OnError | None) -> None:
        """Wait for the oldest tick and deliver its results."""
        tick = self._flight.take()
        leaving = tick.leaving
        try:
            results, times = self._flight.read(tick)
        except Exception as error:
            self._without(leaving, leaving.states, error, events, on_error)
            return
        if leaving.states:
            self._renewed = False
        for state, chunk, result in zip(leaving.states, leaving.plan.chunks, results, strict=True):
            if self._scheduler.computed(state, chunk, result.token, times.ended):
                self._deliver(events, state, chunk, result, times.ended, on_error)
        if on_tick is not None:
            on_tick(report_tick(tick, times, self._scheduler, self._executor.pages, self._cancelled))
        self._cancelled.clear()

    def _deliver(
        self,
        events: list[tuple[int, Event]],
        state: RequestState,
        chunk: Chunk,
        result: TokenResult,
        now: float,
        on_error: OnError | None,
    ) -> None:
        number = state.number
        if self._on_result is not None:
            self._on_result(number, result)
        if chunk.last and not result.finite:
            message = f"request {number}: the model's logits are not finite at {chunk.end} tokens"
            events.append((number, Failed("not_finite", message)))
            self._end(number)
            return
        try:
            for event in self._generations[number].computed(state, chunk, result, now):
                events.append((number, event))
                if isinstance(event, Finished):
                    self._end(number)
        except Exception as error:
            if on_error is None:
                raise
            on_error(error)
            events.append((number, Failed("internal", _message(error))))
            self._end(number)

    def _without(
        self,
        planned: Planned,
        states: Sequence[RequestState],
        error: Exception,
        events: list[tuple[int, Event]],
        on_error: OnError | None,
    ) -> bool:
        """End the requests of a plan that could not run; returns whether other plans are in flight still.

        Raises the error where the others cannot go on.
        """
        if on_error is None:
            raise error
        for state in states:
            if state.number in self._generations:
                self._end(state.number)
                events.append((state.number, Failed("internal", _message(error))))
        self._abandon(planned)
        usable = self._executor.usable()
        if not usable:
            self._renew(error)
        on_error(error)
        return usable

    def _renew(self, error: Exception) -> None:
        """Begin again after an error that took the devices' state: what others had there is computed again.

        Raises the error where that cannot be done, and where nothing was computed since the last time.
        """
        if self._renewed:
            raise error
        self._renewed = True
        self._flight.clear()
        self._scheduler.lose(self._clock())
        try:
            self._executor.renew()
        except Exception as cause:
            raise error from cause

    def _abandon(self, planned: Planned) -> None:
        """The chunks of a plan, whose requests have ended, are in flight no longer."""
        for state, chunk in zip(planned.states, planned.plan.chunks, strict=True):
            self._scheduler.computed(state, chunk, 0, 0.0)

    def _end(self, number: int) -> None:
        del self._generations[number]
        self._scheduler.cancel(number)


def _message(error: Exception) -> str:
    """What a caller is told; the error's own text may name paths."""
    return f"an internal error ended the request ({type(error).__name__})"
