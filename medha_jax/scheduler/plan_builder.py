"""The plan builder: a tick or a slice, with which requests, in which order, and with how long chunks."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from medha_jax.config import SchedulerConfig
from medha_jax.kv.groups import GroupedPages
from medha_jax.plan import Chunk
from medha_jax.scheduler.admitter import MOST_BLOCKED, Admitter
from medha_jax.scheduler.cached_prefixes import CachedPrefixes
from medha_jax.scheduler.decode_queue import DecodeQueue
from medha_jax.scheduler.planned import Attempt, OpenPlan, Planned, SliceTurn
from medha_jax.scheduler.prefill_queue import PolicyOrder, PrefillQueue, slack
from medha_jax.scheduler.prompt_chunks import PromptChunks
from medha_jax.scheduler.request import RequestState
from medha_jax.scheduler.running import RunningRequests
from medha_jax.scheduler.slice_lane import SliceLane, SliceStep
from medha_jax.scheduler.tick_budget import TickBudget, TickLoad
from medha_jax.scheduler.tick_targets import SMALLEST, TickTarget, TickTargets
from medha_jax.scheduler.time_model import TimeModel
from medha_jax.specs.tick_shapes import TickShapes

NO_PAGES: tuple[int, ...] = ()
MOST_TOO_LARGE = 32  # the search for smaller prompts ends after this many that do not fit the tick
NOBODY = PolicyOrder([], *2 * (np.zeros(0),))


class PlanBuilder:
    """Chooses every tick and slice; owns the decode queue, the slice lane, and the loads of the plans in the pipeline.

    There are two lanes over the same stages. A tick has decodes and prompt chunks, through all layers. A slice has some
    layers of long prompts' chunks. A prompt is in one lane at a time, and its last token always goes through a tick.

    `ahead` counts the chunks of a decoding request that may have left the pipeline without being read.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        shapes: TickShapes,
        model: TimeModel,
        queue: PrefillQueue,
        running: RunningRequests,
        pages: GroupedPages,
        ahead: int,
    ) -> None:
        self._config, self._shapes, self._model = config, shapes, model
        self._queue, self._running, self._ahead = queue, running, ahead
        self._targets = TickTargets(config, shapes.stages)
        self._lane = SliceLane(shapes, model.slices)
        self._pages, self._prefixes = pages, CachedPrefixes(pages, shapes.page_size, config.slice_s, queue.between)
        self._admitter = Admitter(config, shapes, queue, running, self._prefixes, self._lane.drop)
        self._chunks = PromptChunks(config, shapes, self._lane)
        self.clear()

    def clear(self) -> None:
        """Start again with an empty pipeline."""
        stages = self._shapes.stages
        self._decode_queue = DecodeQueue(stages, self._config.ageing_ticks)
        self._in_flight: deque[TickLoad] = deque([TickLoad()] * (stages - 1), stages - 1)
        self._lane.clear()
        self._prefixes.clear()
        self._decodes = TickBudget(self._shapes, self._model)  # of the latest tick
        self._in_vain: set[RequestState] = set()  # prompts tried in the latest tick, if no slice was due and none fit
        self._withheld = 0  # ticks since the latest slice before which one came first and had no time

    def use(self, shapes: TickShapes) -> None:
        """Plan with the shapes of another grid, to which the plans in the pipeline are padded from now on, too."""
        self._shapes = shapes
        self._lane.use(shapes)
        self._chunks.use(shapes)
        self._in_flight = deque([load.padded(shapes) for load in self._in_flight], shapes.stages - 1)
        self._decodes = self._decodes.single_rows(shapes)

    def drop(self, state: RequestState) -> None:
        """Take a request that ends, or loses its pages, out of the slice lane."""
        self._lane.drop(state)

    def build(self, tick: int, now: float, expired: Sequence[RequestState]) -> Planned:
        """Plan number `tick`: a slice if one comes first and there is time for it, else a tick.

        `expired` are the requests that were dropped before it.
        """
        plan = OpenPlan(tick, now, TickBudget(self._shapes, self._model, self._in_flight))
        order = NOBODY
        if len(self._queue):
            self._prefixes.begin(decoding=self._decodes.load.rows > 0)
            order = self._admitter.order(plan)
        turn = self._slice_turn(plan, order)
        if turn.due:
            step = self._plan_slice(plan, order, self._targets.of_slice(turn.owed), turn.waiting)
            if step is not None:
                return plan.close(expired, self._pages.take_copies(), step)
        in_flight = any(load.rows for load in self._in_flight)
        self._plan_tick(plan, order)
        self._in_vain = set() if turn.due or plan.prompts else plan.tried
        self._withheld += turn.due
        if turn.due and not plan.chunks and not in_flight:  # no decode was due after all
            step = self._plan_slice(plan, order, SMALLEST)
            return plan.close(expired, self._pages.take_copies(), step)
        return plan.close(expired, self._pages.take_copies())

    def _plan_tick(self, plan: OpenPlan, order: PolicyOrder) -> None:
        """Plan a tick by these rules in order.

        1. In every `ageing_ticks`-th plan, the smallest chunk of the prompt that has waited longest.
        2. The next token of every decoding request.
        3. Prompt chunks in the order of `Admitter.candidates`, as long as `PromptChunks` says, until the tick is full.
        """
        due = self._decode_queue.begin(self._queue.classes.used)
        self._plan_longest_unplanned(plan)
        self._admitter.find_pages(plan, due)
        left = self._plan_decodes(plan, due)
        if len(self._queue):
            self._plan_prompts(plan, order, self._targets.target(plan.decode_tpot, plan.decode_seconds))
        seconds = plan.budget.tick[1]
        self._decode_queue.end(left, plan.sampling)
        self._targets.planned(
            plan.decode_tpot, plan.ending_tpot, seconds, decodes=plan.decode_seconds, left=plan.left_tpot
        )
        self._in_flight.appendleft(plan.budget.load)

    def _slice_turn(self, plan: OpenPlan, order: PolicyOrder) -> SliceTurn:
        """Whether a slice comes before the next tick.

        It does if the first prompt of the order that can run is in the slice lane, or does better there. It is owed if
        there was no time for it before `ageing_ticks` ticks, or by age, if the longest unplanned prompt is in the lane.
        """
        if not self._shapes.own.slices:
            return SliceTurn(False)
        ageing = self._config.ageing_ticks
        if not plan.tick % ageing and self._goes_by_age:
            for state in self._queue.longest_unplanned()[:1]:
                if state.last_planned_tick <= plan.tick - ageing:
                    return SliceTurn(self._lane.holds(state), owed=True)
        blocked, owed = 0, self._queue.policy.bounds_waits and self._withheld >= ageing
        for state, priority in self._admitter.candidates(plan, order):
            if self._lane.holds(state):
                return SliceTurn(True, owed)
            if not state.queued:
                continue
            start, owners = state.scheduled, state.owners
            if state.holding is None:
                groups = self._admitter.could_place(plan, state, priority)
                if groups is None:
                    blocked += 1
                    if blocked == MOST_BLOCKED:
                        break
                    continue
                start, owners = self._admitter.cached(state, groups), groups[:1]
            if not self._better_sliced(plan, state, start, owners):
                if state in self._in_vain:
                    continue
                return SliceTurn(False)
            # its chunks in the other lane must leave the pipeline first
            due = self._shapes.stages == 1 or not state.in_flight
            return SliceTurn(due, owed and state.holding is not None, state)
        return SliceTurn(self._lane.busy)

    def _plan_slice(
        self, plan: OpenPlan, order: PolicyOrder, target: TickTarget, waiting: RequestState | None = None
    ) -> SliceStep | None:
        """Plan the next slice within a target; None if there is no chunk for it, or its smallest one takes too long.

        `waiting` is as in `SliceTurn`.
        """
        lane, least = self._lane, self._shapes.slice_lengths[0]
        if lane.between_rounds:
            self._enter_lane(plan, order, target)
        if not lane.busy or (not plan.states and lane.seconds(least) > target.at_most):
            return None
        states = lane.states
        step = lane.advance(lane.layers_within(target.seconds) or least)
        worked = dict(zip(step.states[0], step.worked, strict=True))  # the other stages run beside the first
        for state in states:
            self._queue.served(state, plan.tick, worked.get(state, 0.0), lane.left(state))
        if waiting is not None and waiting not in states:
            self._queue.policy.waited(waiting.number, step.seconds)
        self._withheld = 0
        self._in_vain.clear()
        self._targets.sliced(step.seconds)
        return step

    def _enter_lane(self, plan: OpenPlan, order: PolicyOrder, target: TickTarget) -> None:
        """Let the next chunks enter the slice lane: those of the first prompts that do better there, one a group.

        None enters if its first slice would take longer than the target allows, or while it would slow others down.
        """
        taken: set[int] = set()
        for state, priority in self._admitter.candidates(plan, order):
            if not state.queued or (self._shapes.stages > 1 and state.in_flight and not self._lane.holds(state)):
                continue
            start, owners = state.scheduled, state.owners
            groups: tuple[int, ...] | None = None
            if state.holding is None:
                groups = self._admitter.could_place(plan, state, priority)
                if groups is None:
                    continue
                start, owners = self._admitter.cached(state, groups), groups[:1]
            if taken and (len(owners) > 1 or owners[0] in taken):
                continue
            if not self._lane.holds(state) and not self._better_sliced(plan, state, start, owners):
                continue
            length, seconds = self._lane.first_slice(
                start, self._chunks.sliceable(state, start), self._targets.longest_layer
            )
            if not length or seconds > target.at_most or (not taken and self._lane.slows(state, start, length)):
                return
            if state.holding is None:
                groups = self._admitter.place(plan, order, state, priority, entered=plan.states)
                if groups is None:
                    return
                self._admitter.admit(plan, state, groups)
                if state.scheduled != start:
                    return  # it begins on its second group, with another shape
                owners = state.owners
                if not taken.isdisjoint(owners):
                    continue  # its first group was a guess (`could_place`), and another chunk has the one that it got
            chunk = self._take_chunk(plan, state, length)
            work = self._queue.entered(state, chunk)
            self._lane.enter(state, chunk, plan.slacks[-1], work)
            taken.update(range(self._shapes.groups) if len(owners) > 1 else owners)
            if len(taken) == self._shapes.groups:
                return

    def _better_sliced(self, plan: OpenPlan, state: RequestState, start: int, owners: Sequence[int]) -> bool:
        """Whether a prompt at position `start` does better in slices than with a chunk in the next tick.

        It does, if it can, after a tick was planned for it in vain.
        """
        if state in self._in_vain:
            return self._chunks.sliceable(state, start) > 1
        target = self._share(plan, state, self._targets.next)
        return self._chunks.better_sliced(self._decodes, state, start, owners, target)

    @property
    def _goes_by_age(self) -> bool:
        """Whether turns go by age: not under a policy that bounds waits, or without chunk preemption."""
        return self._config.chunk_preemption and not self._queue.policy.bounds_waits

    def _plan_longest_unplanned(self, plan: OpenPlan) -> None:
        """Rule 1."""
        ageing = self._config.ageing_ticks
        if plan.tick % ageing or not self._goes_by_age:
            return
        for state in self._queue.longest_unplanned():
            if state.last_planned_tick > plan.tick - ageing:
                return
            length = self._chunks.smallest_length(plan, state)
            if length:
                self._add_prompt_chunk(plan, state, length)
                return

    def _plan_decodes(self, plan: OpenPlan, due: Iterable[RequestState]) -> list[RequestState]:
        """Rule 2. Returns those without a row or a page, and those whose last token the host must read first."""
        prompts = plan.budget.single_rows(self._shapes) if plan.prompts else None  # of rule 1
        left, tpot, add, decode = [], math.inf, plan.add, plan.budget.decode
        page_size, per_group = self._shapes.page_size, self._shapes.per_group
        for state in due:
            if not state.running:
                continue  # it lost its pages to another one
            start, owners = state.scheduled, state.owners
            joins = start == per_group  # the new group has not sampled the last token: the host must send it
            waits = state.in_flight > (0 if joins else self._ahead) or state.needs_page
            if waits or not decode(owners, start):
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
        plan.left_tpot = min((state.tpot for state in left), default=math.inf)
        self._decodes = plan.budget.single_rows(self._shapes, besides=prompts)
        plan.decode_seconds = self._decodes.seconds if tpot < math.inf else 0.0
        return left

    def _plan_prompts(self, plan: OpenPlan, order: PolicyOrder, target: TickTarget) -> None:
        """Rule 3. Each prompt is tried at most once.

        Prompts behind one that runs in slices get a part of the tick only if that one has slack (`_left_by`).
        """
        if plan.full(target):
            return
        for state, priority in self._admitter.candidates(plan, order):
            if not (state.queued or self._lane.holds(state)) or state.last_planned_tick == plan.tick:
                continue
            plan.tried.add(state)
            attempt = self._try_one(plan, order, state, priority, target)
            if attempt is Attempt.SLICED:
                target = self._left_by(plan, state, target)
                if plan.full(target) or not target.at_most:
                    return
            if attempt is Attempt.TOO_LARGE:
                plan.too_large += 1
            if plan.too_large == MOST_TOO_LARGE or (attempt is Attempt.PLANNED and plan.full(target)):
                return
            if state.queued and not self._config.chunk_preemption:
                return  # the next prompt begins when this one is done

    def _try_one(
        self, plan: OpenPlan, order: PolicyOrder, state: RequestState, priority: float, target: TickTarget
    ) -> Attempt:
        """Plan a prompt's next chunk; admit the request first if it waits."""
        if self._lane.holds(state):
            return Attempt.SLICED
        target = self._share(plan, state, target)
        if state.holding is None:
            groups = self._admitter.place(plan, order, state, priority)
            if groups is None:
                return Attempt.NO_PAGES
            start = self._admitter.cached(state, groups)
            if not self._chunks.length(plan, state, start, groups[:1], target):
                return Attempt.SLICED if self._chunks.sliceable(state, start) > 1 else Attempt.TOO_LARGE
            self._admitter.admit(plan, state, groups)
        length = self._chunks.length(plan, state, state.scheduled, state.owners, target)
        if not length and self._chunks.sliceable(state, state.scheduled) > 1:
            return Attempt.SLICED
        if not length and not plan.too_large and self._stands_still(plan, state):
            length = self._chunks.smallest_length(plan, state)
        if not length:
            return Attempt.TOO_LARGE
        self._add_prompt_chunk(plan, state, length)
        return Attempt.PLANNED

    def _left_by(self, plan: OpenPlan, state: RequestState, target: TickTarget) -> TickTarget:
        """The target of the prompts behind one that runs in slices: a long prompt with slack leaves them a share."""
        share = 0.0
        if state.long and self._config.chunk_preemption and not self._queue.policy.bounds_waits:
            share = min(max(slack(state, plan.now), 0.0), self._config.rho_max)
        seconds = plan.budget.seconds + share * max(target.seconds - plan.budget.seconds, 0.0) if share else 0.0
        return TickTarget(seconds, seconds)

    def _share(self, plan: OpenPlan, state: RequestState, target: TickTarget) -> TickTarget:
        """The part of the tick that a prompt may fill: a long prompt with slack leaves some of it to others."""
        if not state.long or not self._config.chunk_preemption:
            return target
        if self._queue.policy.bounds_waits:
            return target.within(self._config.idle_tick_s / self._shapes.stages)
        if len(self._queue) == 1:
            return target
        return target.share(slack(state, plan.now), self._config.rho_max)

    def _stands_still(self, plan: OpenPlan, state: RequestState) -> bool:
        """Whether a policy that bounds waits owes this prompt a chunk: it had none for `ageing_ticks` plans."""
        long_ago = plan.tick - state.last_planned_tick >= self._config.ageing_ticks
        return long_ago and self._queue.policy.bounds_waits and self._config.chunk_preemption

    def _add_prompt_chunk(self, plan: OpenPlan, state: RequestState, length: int) -> None:
        """Plan a chunk of an admitted request's prompt in a tick."""
        plan.budget.prefill(state.owners, state.scheduled, length, state.long)
        chunk = self._take_chunk(plan, state, length)
        self._queue.planned(state, plan.tick)
        plan.prompts += 1
        if chunk.last:
            plan.ending_tpot = min(plan.ending_tpot, state.tpot)

    def _take_chunk(self, plan: OpenPlan, state: RequestState, length: int) -> Chunk:
        """Take the next chunk of an admitted request's prompt into the plan."""
        holding = state.holding
        assert holding is not None
        start, end, owners = state.scheduled, state.scheduled + length, state.owners
        relative_slack = slack(state, plan.now)
        took = self._running.take(state, end)
        assert took, "the pages of known tokens are set aside"
        if self._chunks.joins_a_group(start) and not state.in_flight:
            plan.joining.append(state)
        first_page, pages = holding.new_pages(start, end)
        tokens, last = state.ids(start, end), end == state.to_feed and state.complete
        chunk = Chunk(state.slot, start, length, tokens, last, first_page, pages, owners)
        plan.add(state, chunk, relative_slack)
        self._running.plan_prompt_chunk(state, end)
        return chunk
