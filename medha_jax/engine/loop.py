"""The engine's loop: plan, announce, submit, collect, deliver."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from medha_jax.engine.admission import check_ids, drawn_seed, for_scheduler, single_outputs
from medha_jax.engine.events import Completed, EngineEvent, Failed, FailReason, GenerationRequest, Queued
from medha_jax.engine.executor import Executor
from medha_jax.engine.flight import NOTHING, DispatchedTick, Flight, TickTimes
from medha_jax.engine.generation import Generation, OpenOutputs, OutputFactory
from medha_jax.engine.recovery import Recovery, internal_error
from medha_jax.engine.tick_report import Load, TickReport, report_tick
from medha_jax.grammar.spec import GrammarError
from medha_jax.kv.allocator import OutOfPagesError
from medha_jax.kv.host import UNUSED
from medha_jax.plan import Admission, Chunk, InvalidRequestError, TokenResult, mask_words
from medha_jax.scheduler.planned import Planned
from medha_jax.scheduler.request import RequestState, SchedulerRequest
from medha_jax.scheduler.scheduler import Scheduler, check_queue
from medha_jax.scheduler.time_model import TimeModel
from medha_jax.token_ids import GrowingIds

PAUSE_S = 0.002  # rest if there are requests, nothing runs, and only time can change that
Events = list[tuple[int, EngineEvent]]
OnTick = Callable[[TickReport], None]
OnError = Callable[[Exception], None]


class Engine:
    """Runs requests together as its scheduler plans them; owned by one thread.

    Args:
        executor: runs the plans; nothing else may submit any.
        scheduler: made by `scheduler_for` this executor.
        model: observes the seconds of each tick.
        clock: seconds, monotonic.
        on_tick: called with each tick whose results were read, until it raises.
        on_error: called with errors, which end the requests of their tick; without it errors are raised.
        on_result: called with every chunk's raw result, for tests of logits.
        draw_seed: draws the seed of a request that states none.
    """

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        model: TimeModel,
        clock: Callable[[], float],
        outputs: OutputFactory,
        *,
        on_tick: OnTick | None = None,
        on_error: OnError | None = None,
        on_result: Callable[[int, TokenResult], None] | None = None,
        draw_seed: Callable[[], int] = drawn_seed,
    ) -> None:
        self._executor, self._scheduler = executor, scheduler
        self._clock, self._outputs, self._draw_seed = clock, outputs, draw_seed
        self._on_tick, self._on_error, self._on_result = on_tick, on_error, on_result
        self._generations: dict[int, Generation] = {}
        self._flight = Flight(executor, model, clock)
        self._recovery = Recovery(executor, scheduler, self._flight, clock)
        self._cancelled: list[int] = []
        self._healthy = self._moved = True
        self._reported = UNUSED  # the use of the host tier at the last tick that was reported

    @property
    def busy(self) -> bool:
        """Whether any request has not ended, or still has chunks in flight."""
        return self._scheduler.busy

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its output together."""
        return self._executor.sizes.context

    @property
    def scheduler(self) -> Scheduler:
        """Plans the ticks."""
        return self._scheduler

    @property
    def healthy(self) -> bool:
        """Whether it can run requests; False for good after an error that made the runtime unusable."""
        return self._healthy

    @property
    def load(self) -> Load:
        """Its requests, slots and pages now."""
        slots, pages = self._executor.config.slots, self._executor.sizes.pages
        return Load(**vars(self._scheduler.stats), slots=slots, total_pages=pages, healthy=self._healthy)

    @property
    def predicted_s(self) -> float:
        """Seconds that its unread ticks were predicted to take together. Any thread may read it."""
        return self._flight.predicted_s

    @property
    def rest_s(self) -> float:
        """Seconds to rest before the next step if no request comes; infinite without requests."""
        if not self.busy:
            return math.inf
        if self._moved:
            return 0.0
        if self._scheduler.starved:
            return max(self._scheduler.next_expiry - self._clock(), PAUSE_S)
        return PAUSE_S

    def add(self, request: GenerationRequest, arrival_s: float | None = None) -> int:
        """Queue a request that came at `arrival_s` (default: now), and return its number, as for `begin`.

        Raises:
            InvalidRequestError: the prompt is empty, beyond the vocabulary, or cannot fit; nothing was queued.
            QueueFullError: too many requests wait; nothing was queued.
        """
        wanted = self.prepare(request, self._clock() if arrival_s is None else arrival_s)
        stats = self._scheduler.stats
        own = stats.waiting_tokens_of.get(request.tenant, 0)
        check_queue(self._scheduler.config, stats.waiting, stats.waiting_tokens, wanted.prompt_tokens, own=own)
        number = self._scheduler.next_number
        self.begin(number, request, wanted)
        return number

    def prepare(self, request: GenerationRequest, arrival: float) -> SchedulerRequest:
        """Check a request that came at `arrival` seconds, and convert it for `begin`. Any thread may call it.

        Raises:
            InvalidRequestError: it cannot run.
        """
        wanted = for_scheduler(request, self._executor, arrival)
        try:
            self._scheduler.check_pages(wanted)
        except OutOfPagesError as error:
            raise InvalidRequestError(f"prompt and output: {error}") from None
        return wanted

    def check_ids(self, ids: Sequence[int]) -> None:
        """Check token ids of a prompt. Any thread may call it.

        Raises:
            InvalidRequestError: one is outside the vocabulary.
        """
        check_ids("token id", ids, self._executor.vocab)

    def begin(self, number: int, request: GenerationRequest, wanted: SchedulerRequest) -> Events:
        """Queue a prepared request under a number larger than all before; its output i gets `number + i`."""
        stated = request.sampling.seed
        seed = self._draw_seed() if stated is None else stated  # once: preempted or computed again, it keeps its seed
        outputs, events = OpenOutputs(request.n), list[tuple[int, EngineEvent]]()
        for index, single in enumerate(single_outputs(request, seed)):
            self._begin_output(number, index, single, wanted, outputs)
            outlook = self._scheduler.outlook(number + index, self._clock())
            events.append((number + index, Queued(*outlook, single.sampling.seed or 0)))
        return events

    def _begin_output(
        self, number: int, index: int, request: GenerationRequest, wanted: SchedulerRequest, outputs: OpenOutputs
    ) -> None:
        """Queue output `index` of request `number`."""
        generation = Generation(request, wanted.arrival_s, index=index, outputs=outputs)
        if request.prompt_bound is None:
            generation.output = self._outputs(request, self._executor.sizes.context - len(request.prompt_ids))
        else:
            prompt = wanted.prompt
            if not self._executor.prefix_cacheable:
                prompt = generation.held = GrowingIds(request.prompt_ids)
            generation.request = dataclasses.replace(request, prompt_ids=prompt)  # the first part is kept once
        self._scheduler.enqueue(number + index, wanted, number if index else None)
        self._generations[number + index] = generation

    def extend(self, number: int, ids: Sequence[int], complete: bool) -> None:
        """Add the next part of a prompt that has a `prompt_bound`; a request that has ended is ignored.

        `ids` must be checked and within the bound; they may be empty. The last part is `complete`.
        """
        generation = self._generations.get(number)
        if generation is None:
            return
        if generation.held is not None:
            generation.held.extend(ids)
            ids = generation.held.whole() if complete else ()
            generation.held = None if complete else generation.held
        self._scheduler.extend(number, ids, complete, self._clock())
        if complete:
            state = self._scheduler.state(number)
            prompt, most = state.request.prompt, state.request.max_tokens
            generation.request = dataclasses.replace(generation.request, prompt_ids=prompt, prompt_bound=None)
            generation.output = self._outputs(generation.request, most)
            if state.holding is not None:
                self._write_slot(state, state.scheduled)

    def cancel(self, number: int) -> None:
        """End one output of a request early, without further events. One that has ended is ignored."""
        if self._generations.pop(number, None) is not None:
            self._scheduler.cancel(number)
            self._cancelled.append(number)

    def step(self) -> Events:
        """Run one tick, with the shapes that are there by now; returns (request number, event) pairs.

        The last event of every request is `Completed` or `Failed`. Without work nothing is submitted. If ticks are
        dispatched ahead, the events are those of an earlier tick.
        """
        events: Events = []
        try:
            if (grown := self._executor.grow()) is not None:
                self._scheduler.use(grown)
            planned, first = self._plan()
            events += self._expire(planned)
            try:
                self._announce(planned, events)
                submitted = self._submit(planned, first)
            except Exception as error:
                events += self._fail_plan(planned, planned.touched, error)
                submitted = self._submit(NOTHING, frozenset())  # the other stages go on
            collects = len(self._flight) > (self._scheduler.ahead if submitted else 0)
            if collects:
                events += self._collect()
            self._moved = submitted or collects or bool(events) or bool(planned.copies)
        except Exception as error:
            events += self._fail_all(error)
        return events

    def end_all(self, reason: FailReason, message: str) -> Events:
        """End every request and drop all results in flight. Call it when nothing will run any more."""
        events = [self._end(number, Failed(reason, message)) for number in list(self._generations)]
        self._recovery.drop_all()
        return events

    def _plan(self) -> tuple[Planned, frozenset[int]]:
        """Plan the next tick; returns the plan and the requests with their first chunk in it."""
        now = self._clock()
        planned = self._scheduler.plan(now)
        first = []
        for state in planned.states:
            generation = self._generations[state.number]
            if math.isnan(generation.first_chunk):
                generation.first_chunk = now
                generation.cached = state.holding.cached if state.holding is not None else 0
                if not generation.index:
                    first.append(state.number)
        return planned, frozenset(first)

    def _expire(self, planned: Planned) -> Events:
        """Forget the requests that the scheduler dropped; returns their last events."""
        for state in planned.expired:
            del self._generations[state.number]
        return [(state.number, Failed("deadline", "the deadline has passed")) for state in planned.expired]

    def _announce(self, planned: Planned, events: Events) -> None:
        """Copy pages, and write the slots of the requests that a plan admits, and of those that get another group.

        Masks are written for those that sample and whose slot has none since. Each further one was written when the
        token before it was read.
        """
        if planned.copies:
            self._executor.copy_pages(planned.copies)
        for state in planned.admitted:
            self._write_slot(state, state.computed)
            holding = state.holding
            if holding is not None and holding.cached:
                self._executor.adopt(state.slot, holding.groups[0], holding.adopted)
        for state in planned.joining:
            self._write_slot(state, state.computed)
        samples = _with_grammar(planned)
        self._mask([s for s, chunk in samples if chunk.tokens is not None or s in planned.joining], events)

    def _mask(self, states: Sequence[RequestState], events: Events) -> None:
        """Write what requests with a grammar may sample next; adds the last events of those that cannot go on."""
        masks = np.zeros((len(states), mask_words(self._executor.vocab)), np.uint32)
        rows = []
        for row, (state, mask) in enumerate(zip(states, masks, strict=True)):
            output = self._generations[state.number].output
            assert output is not None and output.matcher is not None
            try:
                output.matcher.fill(mask)
                rows.append(row)
            except GrammarError as error:  # a chunk that is planned runs for nobody; else the slot is free now
                events.append(self._end(state.number, Failed("grammar", str(error))))
        if rows:
            self._executor.set_masks([states[row].slot for row in rows], masks[rows])

    def _write_slot(self, state: RequestState, done: int) -> None:
        """Write a request's settings, and its first `done` tokens, into its slot on every group."""
        request = self._generations[state.number].request
        # an incomplete prompt counts all positions that it may have as prompt
        prompt = state.request.bound or len(state.request.prompt)
        ends = (*request.eos_ids, *request.sampling.stop_token_ids)
        # the newest token is counted when it is fed
        known = state.ids(0, done)
        self._executor.admit(Admission(state.slot, request.sampling, prompt, ends, known[:prompt], known[prompt:]))

    def _submit(self, planned: Planned, first: frozenset[int]) -> bool:
        """Dispatch a plan; returns False if it is empty and no chunk is in the pipeline."""
        if planned.empty and not self._flight.entered:
            return False
        self._flight.submit(planned, first)
        return True

    def _collect(self) -> Events:
        """Wait for the oldest tick and deliver its results."""
        tick = self._flight.take()
        leaving = tick.leaving
        try:
            results, times = self._flight.read(tick)
        except Exception as error:
            return self._fail_plan(leaving, tick.states, error)
        if leaving.states:
            self._recovery.progressed()
        events = self._deliver(leaving, results, times.ended)
        # Now: a mask takes Python's lock to and fro, and events that were told would keep other threads busy with it.
        follow = [s for s, _ in _with_grammar(leaving) if s.running and s.number in self._generations]
        try:
            self._mask(follow, events)
        except Exception as error:
            events += self._fail_plan(NOTHING, follow, error)
        self._report(tick, times)
        self._cancelled.clear()
        return events

    def _deliver(self, leaving: Planned, results: Sequence[TokenResult], now: float) -> Events:
        """Turn the results of a plan's chunks into events of their requests."""
        events: Events = []
        chunk_left, on_result = self._scheduler.chunk_left, self._on_result
        for state, chunk, result in zip(leaving.states, leaving.plan.chunks, results, strict=True):
            if not chunk_left(state, chunk, result.token, now, result.finite):
                continue
            number = state.number
            if on_result is not None:
                on_result(number, result)
            if not result.finite:
                message = f"request {number}: the model's values are not finite at {chunk.end} tokens"
                events.append(self._end(number, Failed("not_finite", message)))
                continue
            try:
                for event in self._generations[number].computed(state, chunk, result, now):
                    events.append(self._end(number, event) if isinstance(event, Completed) else (number, event))
            except GrammarError as error:
                events.append(self._end(number, Failed("grammar", str(error))))
            except Exception as error:
                events.append(self._end(number, self._failed(error)))
        return events

    def _report(self, tick: DispatchedTick, times: TickTimes) -> None:
        """Report a tick to the observer. No answer depends on it, so an observer that raises is dropped."""
        if self._on_tick is None:
            return
        try:
            pages, host = self._executor.sizes.pages, self._scheduler.stats.host
            copied = host.stored - self._reported.stored, host.restored - self._reported.restored
            self._reported = host
            self._on_tick(report_tick(tick, times, self._scheduler, pages, self._cancelled, copied))
        except Exception as error:
            if self._on_error is None:
                raise
            self._on_tick = None
            self._on_error(error)

    def _fail_plan(self, planned: Planned, states: Sequence[RequestState], error: Exception) -> Events:
        """End the requests of a failed plan, and all others if they cannot go on."""
        if self._on_error is None:
            raise error
        failed = internal_error(error)
        events = [self._end(state.number, failed) for state in states if state.number in self._generations]
        if not self._recovery.drop_plan(planned, error):
            return events + self._fail_all(error)
        self._on_error(error)
        return events

    def _fail_all(self, error: Exception) -> Events:
        """End every request after an error that makes the runtime unusable."""
        failed = self._failed(error)
        self._healthy = False
        return self.end_all(failed.reason, failed.message)

    def _failed(self, error: Exception) -> Failed:
        """Report an error and return it as an event; raises it if there is no `on_error`."""
        if self._on_error is None:
            raise error
        self._on_error(error)
        return internal_error(error)

    def _end(self, number: int, event: EngineEvent) -> tuple[int, EngineEvent]:
        """Forget a request; returns its last event."""
        del self._generations[number]
        self._scheduler.cancel(number)
        return number, event


def _with_grammar(planned: Planned) -> list[tuple[RequestState, Chunk]]:
    """The chunks of a plan that sample, of requests with a grammar."""
    pairs = zip(planned.states, planned.plan.chunks, strict=True)
    return [(state, chunk) for state, chunk in pairs if state.request.reads_tokens and chunk.last]
