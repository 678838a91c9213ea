"""A plan in the making: the chunks that were chosen so far, and what still fits beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from medha_jax.config import SchedulerConfig
from medha_jax.plan import Chunk, StepPlan
from medha_jax.scheduler.prefill_queue import PolicyOrder, PrefillQueue, slack
from medha_jax.scheduler.request import RequestState
from medha_jax.scheduler.running import RunningRequests
from medha_jax.scheduler.tick_budget import TickBudget, TickLoad, TickTarget
from medha_jax.scheduler.time_model import TickWork, TimeModel
from medha_jax.specs.tick_shapes import TickShapes

NO_PAGES: tuple[int, ...] = ()
MOST_SKIPPED = 32  # prompts that do not fit a tick, until the search for smaller ones ends
MOST_BLOCKED = 8  # requests that do not fit the pages, until the search for smaller ones ends
BLOCKED = -1
SMALLEST = TickTarget(0.0, math.inf)  # the smallest chunk, whatever it takes


@dataclass(frozen=True)
class Planned:
    """One tick's plan and what goes with it.

    Args:
        plan: chunks to submit; empty where nothing can run.
        states: the request of each chunk.
        admitted: requests that got their slot with this plan; the executor has to be told of them first.
        joining: requests whose second group joins with this plan; the executor has to be told what they have counted.
        expired: requests that were dropped, because their deadline has passed.
        work: of the tick in which the plan enters: of its slowest stage.
        seconds: that this tick is predicted to take.
        sizes: rows of that tick: own decodes and prompt tokens, shared ones, padding included.
        slacks: relative slack of each chunk's request before it; not a number for decodes.
        preempted: requests that lost their pages, or will as soon as their chunks in flight have left.
    """

    plan: StepPlan = field(default_factory=lambda: StepPlan(()))
    states: tuple[RequestState, ...] = ()
    admitted: tuple[RequestState, ...] = ()
    joining: tuple[RequestState, ...] = ()
    expired: tuple[RequestState, ...] = ()
    work: TickWork = field(default_factory=TickWork)
    seconds: float = 0.0
    sizes: tuple[int, ...] = (0, 0, 0, 0)
    slacks: tuple[float, ...] = ()
    preempted: tuple[RequestState, ...] = ()


class Draft:
    """DecodeQueue choices into chunks and moves the requests' cursors.

    `admitted` lists the requests that got their pages for it, `preempted` those that lost theirs, and `sampling` those
    that get a token by it; `prompts` counts its prompt chunks, and `blocked` the
    requests that did not fit the pages; `tightest` is the least TPOT target of its decodes in seconds, and `coming`
    that of its decodes and of the prompts that end in it.

    Args:
        shapes: of ticks.
        model: predicts their seconds.
        residents: told of every chunk.
        flight: the plans that are in the other stages.
        ahead: chunks of a decoding request that may have left without being read.
    """

    def __init__(
        self,
        shapes: TickShapes,
        model: TimeModel,
        residents: RunningRequests,
        flight: Sequence[TickLoad] = (),
        ahead: int = 0,
    ) -> None:
        self._shapes, self._residents, self._ahead = shapes, residents, ahead
        self._room = TickBudget(shapes, model, flight)
        self._chunks: list[Chunk] = []
        self._states: list[RequestState] = []
        self._slacks: list[float] = []
        self._joining: list[RequestState] = []
        self.admitted: list[RequestState] = []
        self.preempted: list[RequestState] = []
        self.sampling: list[RequestState] = []
        self.tightest = self.coming = math.inf
        self.prompts = 0
        self.blocked = 0

    @property
    def load(self) -> TickLoad:
        """What the plan makes a tick do."""
        return self._room.load

    @property
    def seconds(self) -> float:
        """Predicted seconds of a tick with this plan alone."""
        return self._room.seconds

    def packed(self, target: TickTarget) -> bool:
        """Whether no prompt chunk fits any more: rows or time are used up."""
        return self._room.full or (self.prompts > 0 and not self._room.more_fits(target.seconds))

    def decodes(self, due: Iterable[RequestState]) -> list[RequestState]:
        """Plan the next token of each request, in order; those without a row are returned."""
        left, page_size = [], self._shapes.page_size
        for state in due:
            holding, start, owners = state.holding, state.scheduled, state.owners
            assert holding is not None
            unread = 0 if self._begins_to_be_shared(start) else self._ahead  # there the host sends the last token
            if state.in_flight > unread or not self._room.decode(owners, start):
                left.append(state)
                continue
            tokens: tuple[int, ...] | None = None
            first_page, pages = 0, NO_PAGES
            if start % page_size == 0:
                first_page, pages = holding.new_pages(start, start + 1)
                if self._begins_to_be_shared(start):
                    self._joining.append(state)
                    tokens = (state.generated[-1],)  # the other groups have not sampled it
            self._residents.plan_chunk(state, start + 1)
            self._take(state, Chunk(state.slot, start, 1, tokens, True, first_page, pages, owners), math.nan)
            self.tightest = min(self.tightest, state.tpot)
        self.coming = min(self.coming, self.tightest)
        return left

    def length(self, state: RequestState, start: int, owners: Sequence[int], target: TickTarget) -> int:
        """Tokens that a prompt's next chunk has in this tick; 0 if it has none.

        Args:
            state: the request.
            start: position of the chunk's first token.
            owners: groups that hold the request up to there.
            target: of the tick; the smallest chunk may take more if it is the first of a prompt in this tick.
        """
        request = state.request
        if request.counts_tokens and state.in_flight and self._begins_to_be_shared(start):
            return 0  # the other groups can only be told what was counted when it was
        if state.long and self._room.crowded(owners):
            return 0
        limit = target.seconds
        at_most = limit if self.prompts else max(limit, target.at_most)
        most = min(state.to_feed - start, self._shapes.left_on_group(start))
        if request.chunks is None:
            return self._room.largest(owners, start, most, limit, at_most, 1.0 if self.prompts else target.patience)
        stated = request.chunks[min(state.prompt_chunks, len(request.chunks) - 1)]
        length = min(stated, most, self._shapes.buckets(start).prefill[-1])
        return self._room.stated(owners, start, length, at_most)

    def prompt(self, state: RequestState, length: int, slack: float) -> None:
        """Plan a chunk of an admitted request's prompt; `slack` is its relative slack."""
        holding = state.holding
        assert holding is not None
        start, end, owners = state.scheduled, state.scheduled + length, state.owners
        self._room.prefill(owners, start, length, state.long)
        if self._begins_to_be_shared(start) and not state.in_flight:
            self._joining.append(state)
        first_page, pages = holding.new_pages(start, end)
        tokens, last = state.ids(start, end), end == state.to_feed and state.complete
        self._take(state, Chunk(state.slot, start, length, tokens, last, first_page, pages, owners), slack)
        self.prompts += 1
        self._residents.plan_chunk(state, end)
        if last:
            self.coming = min(self.coming, state.tpot)

    def planned(self, expired: Sequence[RequestState]) -> Planned:
        """What was chosen, and the requests that were dropped before."""
        work, seconds = self._room.tick
        return Planned(
            plan=StepPlan(tuple(self._chunks)),
            states=tuple(self._states),
            admitted=tuple(self.admitted),
            joining=tuple(self._joining),
            expired=tuple(expired),
            work=work,
            seconds=seconds,
            sizes=self._room.sizes,
            slacks=tuple(self._slacks),
            preempted=tuple(self.preempted),
        )

    def _take(self, state: RequestState, chunk: Chunk, slack: float) -> None:
        self._chunks.append(chunk)
        self._states.append(state)
        self._slacks.append(slack)
        if chunk.last:
            self.sampling.append(state)

    def _begins_to_be_shared(self, start: int) -> bool:
        """Whether a chunk from `start` is the first that lies on a second group."""
        return start == self._shapes.per_group


class Round:
    """One round through the prompts, each looked at once at the most.

    Args:
        config: policy and limits.
        shapes: of ticks.
        prompts: that have work left.
        residents: who holds pages.
        draft: of the plan; takes the chunks.
        tick: number of the plan.
        now: seconds.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        shapes: TickShapes,
        prompts: PrefillQueue,
        residents: RunningRequests,
        draft: Draft,
        tick: int,
        now: float,
    ) -> None:
        self._config, self._shapes = config, shapes
        self._prompts, self._residents = prompts, residents
        self._draft, self._tick, self._now = draft, tick, now
        self._preemptive = config.preemption and config.chunk_preemption

    def aged(self) -> None:
        """In every `ageing_ticks`-th plan: the smallest chunk of the admitted prompt that has waited longest.

        Not where the policy sees to everybody, or prompts do not take turns.
        """
        ageing = self._config.ageing_ticks
        if self._tick % ageing or self._prompts.policy.bounds_waits or not self._config.chunk_preemption:
            return
        for state in self._prompts.longest_unplanned():
            if state.last_planned_tick > self._tick - ageing:
                return
            length = self._draft.length(state, state.scheduled, state.owners, SMALLEST)
            if length:
                self._serve(state, length)
                return

    def fill(self, target: TickTarget) -> None:
        """Chunks in the order of the policy, until the tick is full."""
        draft = self._draft
        if draft.packed(target):
            return
        if self._preemptive:
            for surplus in self._prompts.over_quota():
                self._preempt(surplus)
        order = self._prompts.order(self._now)
        skipped = 0
        for state, priority in self._entries(order):
            if skipped == MOST_SKIPPED:
                return
            if not state.queued or state.last_planned_tick == self._tick:
                continue
            share = self._share(state, target)
            if state.holding is not None:
                length = draft.length(state, state.scheduled, state.owners, share)
                if not length and not skipped and self._stands_still(state):
                    length = draft.length(state, state.scheduled, state.owners, SMALLEST)
            elif groups := self._place(order, state, priority):
                length = self._admit(state, groups, share)
            else:
                length = BLOCKED
            if length > 0:
                self._serve(state, length)
                if draft.packed(target):
                    return
            elif length != BLOCKED:
                skipped += 1
            if state.queued and not self._config.chunk_preemption:
                return  # the next prompt begins when this one is done

    def _entries(self, order: PolicyOrder) -> Iterator[tuple[RequestState, float]]:
        """Who is looked at, in which order: first those that have been out of their pages for too long."""
        if not self._config.chunk_preemption:
            yield from ((state, math.inf) for state in self._prompts.longest_unplanned())
        overdue = self._prompts.overdue(self._now)
        yield from ((state, math.inf) for state in overdue)
        if not self._residents.free_slots and not self._preemptive:
            order.only_admitted()
        yield from (entry for entry in order if entry[0] not in overdue)

    def _stands_still(self, state: RequestState) -> bool:
        """Whether the first prompt, of a policy that paces, has had no chunk for long and may need a longer tick."""
        long_ago = self._tick - state.last_planned_tick >= self._config.ageing_ticks
        return long_ago and self._prompts.policy.bounds_waits and self._config.chunk_preemption

    def _share(self, state: RequestState, target: TickTarget) -> TickTarget:
        """The part of the tick that a prompt may fill: a long one with slack leaves some of it to others."""
        if not state.long or not self._config.chunk_preemption:
            return target
        if self._prompts.policy.bounds_waits:
            return target.within(self._config.idle_tick_s / self._shapes.stages)
        if len(self._prompts) == 1:
            return target
        return target.share(slack(state, self._now), self._config.rho_max)

    def _place(self, order: PolicyOrder, state: RequestState, priority: float) -> tuple[int, ...] | None:
        """Groups that have the pages of a waiting request, made free by preemption if need be; None if there are none.

        Where others have been admitted past it for too long, or its pages come when chunks in flight have left, nobody
        behind it is admitted in this round.
        """
        groups = self._residents.place(state)
        if groups is not None:
            return groups
        draft, now = self._draft, self._now
        draft.blocked += 1
        state.block(now)
        if draft.blocked == 1 and self._preemptive:
            victims = self._residents.victims(state, priority, self._prompts.policy, now, draft.admitted)
            if victims is not None:
                for victim in victims:
                    self._preempt(victim)
                groups = self._residents.place(state)
                if groups is None:
                    order.only_admitted()
                return groups
        if draft.blocked == MOST_BLOCKED or now - state.blocked_since >= self._config.bypass_s:
            order.only_admitted()
        return None

    def _admit(self, state: RequestState, groups: tuple[int, ...], target: TickTarget) -> int:
        """Give a waiting request its pages, if its first chunk fits the tick; returns the chunk's tokens, or 0."""
        draft = self._draft
        start = min(state.cached_by_group[groups[0]], self._shapes.per_group - 1) if state.cached_by_group else 0
        if not draft.length(state, start, groups[:1], target):
            return 0
        self._residents.admit(state, groups, self._tick - 1)
        draft.admitted.append(state)
        return draft.length(state, state.scheduled, state.owners, target)

    def _preempt(self, state: RequestState) -> None:
        self._draft.preempted.append(state)
        self._residents.preempt(state, self._now)

    def _serve(self, state: RequestState, length: int) -> None:
        """Plan a chunk of an admitted prompt."""
        self._draft.prompt(state, length, slack(state, self._now))
        self._prompts.planned(state, self._tick)
