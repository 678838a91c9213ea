"""One tick's plan: which requests get a chunk, in which order, and of which length."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from medha_jax.config import SchedulerConfig
from medha_jax.plan import Chunk, StepPlan
from medha_jax.scheduler.decode_queue import DecodeQueue
from medha_jax.scheduler.prefill_queue import PolicyOrder, PrefillQueue, slack
from medha_jax.scheduler.request import RequestState
from medha_jax.scheduler.running import RunningRequests
from medha_jax.scheduler.tick_budget import TickBudget, TickLoad, TickTarget, TickTargets
from medha_jax.scheduler.time_model import TickWork, TimeModel
from medha_jax.specs.tick_shapes import TickShapes

NO_PAGES: tuple[int, ...] = ()
MOST_TOO_LARGE = 32  # the search for smaller prompts ends after this many that do not fit the tick
MOST_BLOCKED = 8  # the search for smaller requests ends after this many without free pages
SMALLEST = TickTarget(0.0, math.inf)  # the smallest chunk, however long its tick


@dataclass(frozen=True)
class Planned:
    """One tick's plan, with the state changes that it brings.

    Args:
        plan: chunks to submit; empty if nothing can run.
        states: the request of each chunk.
        admitted: requests that got their slot with this plan; the executor must hear of them first.
        joining: requests that get their second group with this plan; the executor needs their token counts.
        expired: requests dropped because their deadline has passed.
        work: of the slowest stage in the tick in which the plan enters.
        seconds: predicted for that tick.
        sizes: padded rows of that tick: own decodes, own prompt tokens, shared decodes, shared prompt tokens.
        slacks: relative slack of each chunk's request before the chunk; NaN for decodes.
        preempted: requests that lose their pages, now or when their chunks in flight have left.
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


class Attempt(Enum):
    """The outcome of trying to give a prompt a chunk."""

    PLANNED = "planned"
    TOO_LARGE = "too large"
    """No chunk of the prompt fits the tick."""
    NO_PAGES = "no pages"
    """The request waits: no slot is free, or too few pages are."""


@dataclass(slots=True)
class _OpenPlan:
    """An unfinished plan. Fields not listed are as in `Planned`.

    Args:
        sampling: requests with a chunk in the plan that samples a token.
        prompts: number of prompt chunks.
        too_large: prompts tried that do not fit the tick.
        blocked: waiting requests tried without free pages for them.
        decode_tpot: least TPOT target of the decodes, in seconds.
        ending_tpot: least TPOT target of the prompts that end in the plan, in seconds.
    """

    tick: int
    now: float
    budget: TickBudget
    chunks: list[Chunk] = field(default_factory=list)
    states: list[RequestState] = field(default_factory=list)
    slacks: list[float] = field(default_factory=list)
    joining: list[RequestState] = field(default_factory=list)
    admitted: list[RequestState] = field(default_factory=list)
    preempted: list[RequestState] = field(default_factory=list)
    sampling: list[RequestState] = field(default_factory=list)
    prompts: int = 0
    too_large: int = 0
    blocked: int = 0
    decode_tpot: float = math.inf
    ending_tpot: float = math.inf

    def add(self, state: RequestState, chunk: Chunk, slack: float) -> None:
        """Take a chunk."""
        self.chunks.append(chunk)
        self.states.append(state)
        self.slacks.append(slack)
        if chunk.last:
            self.sampling.append(state)

    def full(self, target: TickTarget) -> bool:
        """Whether no further prompt chunk fits, by rows or by time."""
        return self.budget.full or (self.prompts > 0 and not self.budget.more_fits(target.seconds))

    def close(self, expired: Sequence[RequestState]) -> Planned:
        """The finished plan; `expired` are the requests that were dropped before it."""
        work, seconds = self.budget.tick
        return Planned(
            plan=StepPlan(tuple(self.chunks)),
            states=tuple(self.states),
            admitted=tuple(self.admitted),
            joining=tuple(self.joining),
            expired=tuple(expired),
            work=work,
            seconds=seconds,
            sizes=self.budget.sizes,
            slacks=tuple(self.slacks),
            preempted=tuple(self.preempted),
        )


class PlanBuilder:
    """Chooses the chunks of every tick; owns the decode queue, and the loads of the plans in the pipeline.

    `ahead` counts the chunks of a decoding request that may have left the pipeline without being read.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        shapes: TickShapes,
        model: TimeModel,
        queue: PrefillQueue,
        running: RunningRequests,
        ahead: int,
    ) -> None:
        self._config, self._shapes, self._model = config, shapes, model
        self._queue, self._running, self._ahead = queue, running, ahead
        self._preemptive = config.preemption and config.chunk_preemption
        self._targets = TickTargets(config, shapes.stages)
        self.clear()

    def clear(self) -> None:
        """Start again with an empty pipeline."""
        stages = self._shapes.stages
        self._decode_queue = DecodeQueue(stages)
        self._in_flight: deque[TickLoad] = deque([TickLoad()] * (stages - 1), stages - 1)

    def build(self, tick: int, now: float, expired: Sequence[RequestState]) -> Planned:
        """Plan number `tick`, by these rules in order.

        1. In every `ageing_ticks`-th plan, the smallest chunk of the prompt that has waited longest.
        2. The next token of every decoding request.
        3. Prompt chunks in the order of `_candidates`, each as long as `_length` says, until the tick is full.

        `expired` are the requests that were dropped before it.
        """
        plan = _OpenPlan(tick, now, TickBudget(self._shapes, self._model, self._in_flight))
        due = self._decode_queue.begin()
        self._plan_longest_unplanned(plan)
        left = self._plan_decodes(plan, due)
        if len(self._queue):
            self._plan_prompts(plan, self._targets.target(plan.decode_tpot, plan.budget.seconds))
        planned = plan.close(expired)
        self._decode_queue.end(left, plan.sampling)
        self._targets.planned(plan.decode_tpot, min(plan.decode_tpot, plan.ending_tpot), planned.seconds)
        self._in_flight.appendleft(plan.budget.load)
        return planned

    def _plan_longest_unplanned(self, plan: _OpenPlan) -> None:
        """Rule 1. It does not apply to a policy that bounds waits, or without chunk preemption."""
        ageing = self._config.ageing_ticks
        if plan.tick % ageing or self._queue.policy.bounds_waits or not self._config.chunk_preemption:
            return
        for state in self._queue.longest_unplanned():
            if state.last_planned_tick > plan.tick - ageing:
                return
            length = self._length(plan, state, state.scheduled, state.owners, SMALLEST)
            if length:
                self._add_prompt_chunk(plan, state, length)
                return

    def _plan_decodes(self, plan: _OpenPlan, due: Iterable[RequestState]) -> list[RequestState]:
        """Rule 2. Returns the requests that find no row, or whose last token the host must read first."""
        left, tpot, add, decode = [], math.inf, plan.add, plan.budget.decode
        page_size, per_group = self._shapes.page_size, self._shapes.per_group
        for state in due:
            start, owners = state.scheduled, state.owners
            joins = start == per_group  # the new group has not sampled the last token: the host must send it
            if state.in_flight > (0 if joins else self._ahead) or not decode(owners, start):
                left.append(state)
                continue
            tokens: tuple[int, ...] | None = None
            first_page, pages = 0, NO_PAGES
            if start % page_size == 0:
                assert state.holding is not None
                first_page, pages = state.holding.new_pages(start, start + 1)
            if joins:
                plan.joining.append(state)
                tokens = (state.generated[-1],)
            add(state, Chunk(state.slot, start, 1, tokens, True, first_page, pages, owners), math.nan)
            state.plan_decode()
            if state.tpot < tpot:
                tpot = state.tpot
        plan.decode_tpot = tpot
        return left

    def _plan_prompts(self, plan: _OpenPlan, target: TickTarget) -> None:
        """Rule 3. Each prompt is tried at most once."""
        if plan.full(target):
            return
        if self._preemptive:
            for state in self._queue.over_quota():
                self._preempt(plan, state)
        order = self._queue.order(plan.now)
        for state, priority in self._candidates(plan, order):
            if not state.queued or state.last_planned_tick == plan.tick:
                continue
            attempt = self._try_one(plan, order, state, priority, target)
            if attempt is Attempt.TOO_LARGE:
                plan.too_large += 1
            if plan.too_large == MOST_TOO_LARGE or (attempt is Attempt.PLANNED and plan.full(target)):
                return
            if state.queued and not self._config.chunk_preemption:
                return  # the next prompt begins when this one is done

    def _candidates(self, plan: _OpenPlan, order: PolicyOrder) -> Iterator[tuple[RequestState, float]]:
        """The prompts to try and their priorities, by these rules in order.

        1. Without chunk preemption, the prompt that has begun.
        2. Preempted requests that have waited too long for their pages.
        3. The order of the policy. Waiting requests are skipped if no slot is free and none can be freed.
        """
        if not self._config.chunk_preemption:
            yield from ((state, math.inf) for state in self._queue.longest_unplanned())
        overdue = self._queue.overdue(plan.now)
        yield from ((state, math.inf) for state in overdue)
        if not self._running.free_slots and not self._preemptive:
            order.only_admitted()
        yield from (entry for entry in order if entry[0] not in overdue)

    def _try_one(
        self, plan: _OpenPlan, order: PolicyOrder, state: RequestState, priority: float, target: TickTarget
    ) -> Attempt:
        """Plan a prompt's next chunk; admit the request first if it waits."""
        target = self._share(plan, state, target)
        if state.holding is None:
            groups = self._place(plan, order, state, priority)
            if groups is None:
                return Attempt.NO_PAGES
            length = self._admit(plan, state, groups, target)
        else:
            length = self._length(plan, state, state.scheduled, state.owners, target)
            if not length and not plan.too_large and self._stands_still(plan, state):
                length = self._length(plan, state, state.scheduled, state.owners, SMALLEST)
        if not length:
            return Attempt.TOO_LARGE
        self._add_prompt_chunk(plan, state, length)
        return Attempt.PLANNED

    def _length(
        self, plan: _OpenPlan, state: RequestState, start: int, owners: Sequence[int], target: TickTarget
    ) -> int:
        """Tokens of a prompt's next chunk, from position `start`; 0 if none fits the tick.

        Only the first prompt chunk of a plan may exceed the target. `owners` hold the request up to `start`.
        """
        request = state.request
        if request.counts_tokens and state.in_flight and self._joins_a_group(start):
            return 0  # a joining group can only be told the counts of tokens that have left the pipeline
        if state.long and plan.budget.crowded(owners):
            return 0
        if plan.prompts:
            target = target.strict
        most = min(state.to_feed - start, self._shapes.left_on_group(start))
        if request.chunks is None:
            return plan.budget.largest(owners, start, most, target)
        stated = request.chunks[min(state.prompt_chunks, len(request.chunks) - 1)]
        length = min(stated, most, self._shapes.buckets(start).prefill[-1])
        return plan.budget.stated(owners, start, length, target)

    def _share(self, plan: _OpenPlan, state: RequestState, target: TickTarget) -> TickTarget:
        """The part of the tick that a prompt may fill: a long prompt with slack leaves some of it to others."""
        if not state.long or not self._config.chunk_preemption:
            return target
        if self._queue.policy.bounds_waits:
            return target.within(self._config.idle_tick_s / self._shapes.stages)
        if len(self._queue) == 1:
            return target
        return target.share(slack(state, plan.now), self._config.rho_max)

    def _stands_still(self, plan: _OpenPlan, state: RequestState) -> bool:
        """Whether a policy that bounds waits owes this prompt a chunk: it had none for `ageing_ticks` plans."""
        long_ago = plan.tick - state.last_planned_tick >= self._config.ageing_ticks
        return long_ago and self._queue.policy.bounds_waits and self._config.chunk_preemption

    def _place(
        self, plan: _OpenPlan, order: PolicyOrder, state: RequestState, priority: float
    ) -> tuple[int, ...] | None:
        """Groups with free pages for a waiting request, after preemption if necessary; None if there are none.

        Requests behind it are not admitted in this plan in two cases. Others have passed it for too long, or it gets
        its pages when chunks in flight have left.
        """
        groups = self._running.place(state)
        if groups is not None:
            return groups
        plan.blocked += 1
        state.block(plan.now)
        if plan.blocked == 1 and self._preemptive:
            victims = self._running.victims(state, priority, self._queue.policy, plan.now, plan.admitted)
            if victims is not None:
                for victim in victims:
                    self._preempt(plan, victim)
                groups = self._running.place(state)
                if groups is None:
                    order.only_admitted()
                return groups
        if plan.blocked == MOST_BLOCKED or plan.now - state.blocked_since >= self._config.bypass_s:
            order.only_admitted()
        return None

    def _admit(self, plan: _OpenPlan, state: RequestState, groups: tuple[int, ...], target: TickTarget) -> int:
        """Admit a waiting request if its first chunk fits the tick; returns the chunk's tokens, or 0."""
        cached = state.cached_by_group[groups[0]] if state.cached_by_group else 0
        if not self._length(plan, state, min(cached, self._shapes.per_group - 1), groups[:1], target):
            return 0
        self._running.admit(state, groups, plan.tick - 1)
        plan.admitted.append(state)
        return self._length(plan, state, state.scheduled, state.owners, target)

    def _preempt(self, plan: _OpenPlan, state: RequestState) -> None:
        plan.preempted.append(state)
        self._running.preempt(state, plan.now)

    def _add_prompt_chunk(self, plan: _OpenPlan, state: RequestState, length: int) -> None:
        """Plan a chunk of an admitted request's prompt."""
        holding = state.holding
        assert holding is not None
        start, end, owners = state.scheduled, state.scheduled + length, state.owners
        relative_slack = slack(state, plan.now)
        plan.budget.prefill(owners, start, length, state.long)
        if self._joins_a_group(start) and not state.in_flight:
            plan.joining.append(state)
        first_page, pages = holding.new_pages(start, end)
        tokens, last = state.ids(start, end), end == state.to_feed and state.complete
        plan.add(state, Chunk(state.slot, start, length, tokens, last, first_page, pages, owners), relative_slack)
        plan.prompts += 1
        if last:
            plan.ending_tpot = min(plan.ending_tpot, state.tpot)
        self._running.plan_prompt_chunk(state, end)
        self._queue.planned(state, plan.tick)

    def _joins_a_group(self, start: int) -> bool:
        """Whether a chunk from `start` is the first that lies on a second group."""
        return start == self._shapes.per_group
