"""Serves requests with a scheduler on the device without a model; after every tick all must be accounted for."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from medha_jax.config import Buckets, SchedulerConfig
from medha_jax.kv.groups import GroupedPages
from medha_jax.plan import NO_HOST, Chunk, HostTier
from medha_jax.scheduler.kvp_placement import attention_seen
from medha_jax.scheduler.planned import Planned
from medha_jax.scheduler.request import WAITING, RequestState, SchedulerRequest
from medha_jax.scheduler.scheduler import Scheduler, check_queue
from medha_jax.scheduler.time_model import LinearTimeModel, TimeModel
from medha_jax.specs.shape_grid import ShapeGrid
from medha_jax.specs.tick_shapes import TickShapes
from tests.scheduler.device import Device

OWN = Buckets(decode=(2, 4), prefill=(8, 32), chunks=3, slices=())
SHARED = Buckets(decode=(2,), prefill=(8, 16), chunks=2, slices=())
SLICED_OWN = dataclasses.replace(OWN, slices=(8, 32))
SLICED_SHARED = dataclasses.replace(SHARED, slices=(16,))
MODEL = LinearTimeModel(fixed=1e-3, tokens=1e-4, attention=1e-6, context=1e-6, rows=1e-5)


def shapes_of(
    groups: int = 1,
    stages: int = 1,
    slots: int = 4,
    per_group: int | None = None,
    context: int = 400,
    layers: tuple[int, ...] | None = None,
) -> TickShapes:
    """Small shapes with pages of four tokens; with slices if `layers` gives their numbers of layers."""
    own, shared = (OWN, SHARED) if layers is None else (SLICED_OWN, SLICED_SHARED)
    return TickShapes(own, shared, groups, per_group or 2**20, 4, stages, slots, context, layers or (1,))


def enqueue(scheduler: Scheduler, request: SchedulerRequest, outputs: int = 1) -> int:
    """Check and queue a request as an engine does; returns its number, which those of further outputs follow."""
    scheduler.check_pages(request)
    stats, prompt = scheduler.stats, len(request.prompt)
    own = stats.waiting_tokens_of.get(request.tenant, 0)
    check_queue(scheduler.config, stats.waiting, stats.waiting_tokens, prompt, own=own)
    number = scheduler.next_number
    for index in range(outputs):
        scheduler.enqueue(number + index, request, number if index else None)
    return number


def overload(load: float, prompts: Sequence[int], seconds: Callable[[int], float]) -> list[float]:
    """Arrivals of prompts, each when the work before it has come at this load."""
    work = [seconds(prompt) for prompt in prompts]
    return (np.concatenate([[0.0], np.cumsum(work)[:-1]]) / load).tolist()


def pending_work(scheduler: Scheduler) -> tuple[int, ...]:
    """Attention work of each group that admitted prompts have left, in tokens²."""
    return scheduler._running._placement.pending


@dataclass
class Server:
    """A virtual clock, a scheduler and a device; a tick takes what the time model says."""

    config: SchedulerConfig
    shapes: TickShapes
    pages: int = 100
    model: TimeModel = MODEL
    host: HostTier = NO_HOST
    now: float = 0.0
    outputs: dict[int, list[int]] = field(default_factory=dict)
    first_token: dict[int, float] = field(default_factory=dict)
    finished: dict[int, float] = field(default_factory=dict)
    expired: list[int] = field(default_factory=list)
    plans: list[Planned] = field(default_factory=list)
    requests: dict[int, SchedulerRequest] = field(default_factory=dict)
    reached: dict[int, int] = field(default_factory=dict)
    preemptions: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.allocator = GroupedPages(
            self.shapes.groups,
            self.pages,
            self.shapes.page_size,
            self.shapes.per_group,
            prefix_cache=self.config.prefix_cache,
            host=self.host,
        )
        self.scheduler = Scheduler(self.config, self.shapes, self.allocator, self.model)
        self.device = Device(self.shapes)
        self._flight: deque[tuple[RequestState, ...]] = deque([()] * (self.shapes.stages - 1))

    def add(self, request: SchedulerRequest, outputs: int = 1) -> int:
        number = enqueue(self.scheduler, request, outputs)
        for output in range(number, number + outputs):
            self.requests[output] = request
            self.outputs[output] = []
        return number

    def ask(self, prompt: int, tokens: int = 4, first: int = 0, n: int = 1, **stated: object) -> int:
        """Add a request of `prompt` tokens that count up from `first`, arriving now, for `n` outputs."""
        return self.add(SchedulerRequest(range(first, first + prompt), tokens, self.now, **stated), n)

    def use(self, grid: ShapeGrid) -> None:
        """Go on with the shapes of another grid."""
        self.scheduler.use(grid)
        self.shapes = self.device.shapes = self.shapes.on(grid)

    def step(self) -> Planned:
        planned = self.scheduler.plan(self.now)
        self.plans.append(planned)
        self.expired += [state.number for state in planned.expired]
        self.device.copy_pages(planned.copies)
        for state in planned.admitted:
            assert state.holding is not None
            self.device.admit(state.slot, state.holding.cached)
            if state.holding.cached:
                self.device.adopt(state.slot, state.holding.groups[0], state.holding.adopted)
        self.check()
        if planned.step is not None:
            self.now += planned.seconds
            done = self.device.submit_slice(planned.step.slice)
            assert planned.seconds == planned.step.seconds
            for state, chunk in zip(planned.step.leaving, done, strict=True):
                self._deliver(state, chunk, 0)
            self.check()
            return planned
        if not planned.plan.chunks and not self.device.busy:
            self.now += 1e-3
            return planned
        self.now += planned.seconds
        leaving, tokens = self.device.submit(planned.plan)
        self._flight.append(planned.states)
        for state, chunk, token in zip(self._flight.popleft(), leaving.chunks, tokens, strict=True):
            self._deliver(state, chunk, token)
        self.check()
        return planned

    def run(self, most: int = 20_000) -> None:
        """Step until nothing is left."""
        for _ in range(most):
            if not self.scheduler.busy:
                return
            self.step()
        raise AssertionError(
            f"{self.scheduler.stats.waiting} wait, {self.scheduler.stats.running} run, after {most} ticks"
        )

    def _deliver(self, state: RequestState, chunk: Chunk, token: int) -> None:
        number = state.number
        assert state.in_flight >= 1
        before = state.preemptions, state.computed
        if not self.scheduler.chunk_left(state, chunk, token, self.now):
            return
        assert chunk.end > before[1], "the computed cursor only grows while pages are held"
        self.reached[number] = max(self.reached.get(number, 0), chunk.end)
        if chunk.last:
            self.first_token.setdefault(number, self.now)
            self.outputs[number].append(token)
            if len(self.outputs[number]) == self.requests[number].max_tokens:
                self.finished[number] = self.now
                self.scheduler.cancel(number)

    def check(self) -> None:
        """Pages, slots, cursors and counters are what they must be."""
        lane = self.scheduler._builder._lane
        for state in lane.states:
            assert state.remaining >= lane.left(state) - 1e-9, "layers that are left are work that is left"
        scheduler, shapes = self.scheduler, self.shapes
        holders: Sequence[RequestState] = scheduler._running.holders
        slots = [state.slot for state in holders]
        assert len(set(slots)) == len(slots) <= shapes.slots
        pending = [0] * shapes.groups
        held: list[Counter[int]] = [Counter() for _ in range(shapes.groups)]
        aside = [0] * shapes.groups
        for state in holders:
            holding = state.holding
            assert holding is not None
            assert 0 <= state.computed <= state.scheduled <= holding_tokens(state)
            assert state.scheduled <= holding.taken <= holding.aside
            rows = zip(holding.groups, holding.pages, holding.owned, strict=True)
            for part, (group, pages, owned) in enumerate(rows):
                held[group].update(pages)
                aside[group] += owned - len(pages)
                if state.scheduled < state.to_feed:
                    seen = [attention_seen(part, n, shapes.per_group) for n in (state.scheduled, state.to_feed)]
                    pending[group] += seen[1] - seen[0]
        assert pending_work(scheduler) == tuple(pending), "the counters of attention work do not drift"
        free = tuple(self.pages - len(pages) - more for pages, more in zip(held, aside, strict=True))
        assert scheduler.stats.free_pages == free and min(free) >= 0
        assert all(0 <= cached <= both for cached, both in zip(scheduler.stats.cached_pages, free, strict=True))
        if not self.config.prefix_cache:
            assert all(count == 1 for pages in held for count in pages.values()), "a page has one owner"
        families = [state.family for state in scheduler._states.values()]
        assert scheduler.stats.waiting + scheduler.stats.running == len(set(families))
        assert scheduler.stats.running == len({state.family for state in holders})
        assert scheduler.stats.used_slots == len(holders)
        waiting = [state for state in scheduler._states.values() if state.phase is WAITING]
        assert scheduler.stats.waiting_tokens == sum(state.claimed for state in waiting)
        tokens, running = Counter[str](), Counter({state.family: state.request.tenant for state in holders}.values())
        for state in waiting:
            tokens[state.request.tenant] += state.claimed
        assert scheduler.stats.waiting_tokens_of == {tenant: count for tenant, count in tokens.items() if count}
        assert scheduler.stats.running_of == running
        if not scheduler.busy:
            assert scheduler.stats.free_pages == (self.pages,) * shapes.groups


def holding_tokens(state: RequestState) -> int:
    """Tokens that a request may ever have."""
    return len(state.request.prompt) + state.request.max_tokens
