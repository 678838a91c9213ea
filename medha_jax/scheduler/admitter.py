"""The admitter: the prompts to try in a plan, in order, and pages for those that wait."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from medha_jax.config import SchedulerConfig
from medha_jax.scheduler.cached_prefixes import CachedPrefixes
from medha_jax.scheduler.planned import OpenPlan
from medha_jax.scheduler.prefill_queue import PolicyOrder, PrefillQueue
from medha_jax.scheduler.request import RequestState, standing
from medha_jax.scheduler.running import RunningRequests
from medha_jax.specs.tick_shapes import TickShapes

MOST_BLOCKED = 8  # the search for smaller requests ends after this many without free pages


class Admitter:
    """Finds and frees pages for waiting requests, and admits them into a plan.

    `drop` takes a request that loses its pages out of the slice lane.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        shapes: TickShapes,
        queue: PrefillQueue,
        running: RunningRequests,
        prefixes: CachedPrefixes,
        drop: Callable[[RequestState], None],
    ) -> None:
        self._config, self._shapes, self._queue, self._running = config, shapes, queue, running
        self._prefixes = prefixes
        self._drop = drop
        self._preemptive = config.preemption and config.chunk_preemption

    def order(self, plan: OpenPlan) -> PolicyOrder:
        """All prompts in the order of the policy, without the pages of those that exceed its quota."""
        if self._preemptive:
            for state in self._queue.over_quota():
                self._preempt(plan, state)
        return self._queue.order(plan.now)

    def candidates(self, plan: OpenPlan, order: PolicyOrder) -> Iterator[tuple[RequestState, float]]:
        """The prompts to try and their priorities, by these rules in order.

        1. Without chunk preemption, the prompt that has begun.
        2. Preempted requests that have waited too long for their pages, each before the others of its class.
        3. The order of classes and policy. Waiting requests are skipped if no slot is free and none can be freed.
        """
        if not self._config.chunk_preemption:
            yield from ((state, math.inf) for state in self._queue.longest_unplanned())
        overdue = self._queue.overdue(plan.now)
        coming = deque(sorted(overdue, key=lambda state: state.request.priority))
        while coming and not self._queue.classes.used:
            yield coming.popleft(), math.inf
        if not self._running.free_slots and not self._preemptive:
            order.only_admitted()
        for entry in order:
            while coming and self._queue.classes.before(coming[0], entry[0]):
                yield coming.popleft(), math.inf
            if entry[0] not in overdue:
                yield entry
        yield from ((state, math.inf) for state in coming)

    def admit(self, plan: OpenPlan, state: RequestState, groups: tuple[int, ...]) -> None:
        """Admit a waiting request to its groups; its first chunk comes with this plan or later."""
        self._running.admit(state, groups, plan.tick - 1)
        plan.admitted.append(state)

    def place(
        self,
        plan: OpenPlan,
        order: PolicyOrder,
        state: RequestState,
        priority: float,
        entered: Sequence[RequestState] = (),
    ) -> tuple[int, ...] | None:
        """Groups with free pages for a waiting request, after preemption if necessary; None if there are none.

        Nobody whose chunk has `entered` the slice lane with this plan is preempted, because the chunk is in it already.

        None, too, while its prefix is looked up or comes back from host memory. Requests behind it are not admitted in
        this plan in two cases. Others have passed it for too long, or it gets its pages when chunks in flight have
        left.
        """
        if not self._prefixes.found(state):
            return None
        groups = self._running.place(state)
        if groups is not None:
            return groups if self._prefixes.ready(state, groups[0]) else None
        plan.blocked += 1
        state.block(plan.now)
        if plan.blocked == 1 and self._preemptive:
            spared = (*plan.admitted, *entered)
            victims = self._running.victims(state, priority, self._queue.policy, plan.now, spared)
            if victims is not None:
                for victim in victims:
                    self._preempt(plan, victim)
                groups = self._running.place(state)
                if groups is None:
                    order.only_admitted()
                elif not self._prefixes.ready(state, groups[0]):
                    return None
                return groups
        if plan.blocked == MOST_BLOCKED or plan.now - state.blocked_since >= self._config.bypass_s:
            order.only_admitted()
        return None

    def could_place(self, plan: OpenPlan, state: RequestState, priority: float) -> tuple[int, ...] | None:
        """Groups that a waiting request would get, after preemption if necessary; preempts nobody.

        None if there are none, or while its prefix is looked up or comes back from host memory. The first group is a
        guess if others must be preempted.
        """
        if not self._prefixes.found(state):
            return None
        groups = self._running.place(state)
        if groups is not None:
            return groups if self._prefixes.ready(state, groups[0]) else None
        if not self._preemptive:
            return None
        victims = self._running.victims(state, priority, self._queue.policy, plan.now, plan.admitted)
        return None if victims is None else (0,)

    def cached(self, state: RequestState, groups: Sequence[int]) -> int:
        """Tokens of a waiting request that its first group has in the prefix cache."""
        cached = state.cached_by_group[groups[0]] if state.cached_by_group else 0
        return min(cached, self._shapes.per_group - 1)

    def find_pages(self, plan: OpenPlan, due: Sequence[RequestState]) -> None:
        """Take the next page of every due decode that needs one, after preemption if necessary.

        The first class, and of it the oldest, comes first. Those that get none are not planned in this tick. If nobody
        could go on, the first one takes the pages of the last. Nobody whom this plan admits is preempted by it, because
        the executor hears of it as admitted.
        """
        running, policy = self._running, self._queue.policy
        spared = (*plan.states, *plan.admitted)
        short = {one for one in due if one.needs_page and not running.take(one, one.scheduled + 1)}
        for nobody_yields in (False, True):
            for state in sorted(short, key=standing):
                while state.running and not running.take(state, state.scheduled + 1):
                    if nobody_yields:
                        victim = running.last_resort(state, short)
                    else:
                        victim = running.yielding(state, policy, plan.now, spared)
                    if victim is None:
                        break
                    self._preempt(plan, victim)
                    short.discard(victim)
                if not (state.running and state.needs_page):
                    short.discard(state)

    def _preempt(self, plan: OpenPlan, state: RequestState) -> None:
        plan.preempted.append(state)
        plan.lost_tokens += state.scheduled
        self._drop(state)
        self._running.preempt(state, plan.now, counted=not state.idle)
