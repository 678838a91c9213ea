"""The prompt chunks of one plan: who is looked at, in which order, who is admitted, and how much each gets."""

from __future__ import annotations

import math
from collections.abc import Iterator

from medha_jax.config import SchedulerConfig
from medha_jax.scheduler.admissions import Admissions
from medha_jax.scheduler.backlog import Order
from medha_jax.scheduler.draft import Draft
from medha_jax.scheduler.prompts import Prompts, slack
from medha_jax.scheduler.request import RequestState
from medha_jax.scheduler.residents import Residents
from medha_jax.scheduler.shapes import Shapes
from medha_jax.scheduler.targets import TickTarget

MOST_SKIPPED = 32  # prompts that do not fit a tick, until the search for smaller ones ends
MOST_BLOCKED = 8  # requests that do not fit the pages, until the search for smaller ones ends
BLOCKED = -1
SMALLEST = TickTarget(0.0, math.inf)  # the smallest chunk, whatever it takes


class Round:
    """One round through the prompts, each looked at once at the most.

    Args:
        config: policy and limits.
        shapes: of ticks.
        prompts: that have work left.
        residents: who holds pages.
        admissions: moves requests between both.
        draft: of the plan; takes the chunks.
        tick: number of the plan.
        now: seconds.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        shapes: Shapes,
        prompts: Prompts,
        residents: Residents,
        admissions: Admissions,
        draft: Draft,
        tick: int,
        now: float,
    ) -> None:
        self._config, self._shapes = config, shapes
        self._prompts, self._residents, self._admissions = prompts, residents, admissions
        self._draft, self._tick, self._now = draft, tick, now
        self._preemptive = config.preemption and config.chunk_preemption

    def aged(self) -> None:
        """In every `ageing_ticks`-th plan: the smallest chunk of the admitted prompt that has waited longest.

        Not where the policy sees to everybody, or prompts do not take turns.
        """
        ageing = self._config.ageing_ticks
        if self._tick % ageing or self._prompts.policy.paces or not self._config.chunk_preemption:
            return
        for state in self._prompts.longest_unserved():
            if state.served > self._tick - ageing:
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
            for surplus in self._prompts.surplus():
                self._preempt(surplus)
        order = self._prompts.order(self._now)
        skipped = 0
        for state, priority in self._entries(order):
            if skipped == MOST_SKIPPED:
                return
            if not state.queued or state.served == self._tick:
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

    def _entries(self, order: Order) -> Iterator[tuple[RequestState, float]]:
        """Who is looked at, in which order: first those that have been out of their pages for too long."""
        if not self._config.chunk_preemption:
            yield from ((state, math.inf) for state in self._prompts.longest_unserved())
        overdue = self._prompts.overdue(self._now)
        yield from ((state, math.inf) for state in overdue)
        if not self._residents.free_slots and not self._preemptive:
            order.only_admitted()
        yield from (entry for entry in order if entry[0] not in overdue)

    def _stands_still(self, state: RequestState) -> bool:
        """Whether the first prompt, of a policy that paces, has had no chunk for long and may need a longer tick."""
        long_ago = self._tick - state.served >= self._config.ageing_ticks
        return long_ago and self._prompts.policy.paces and self._config.chunk_preemption

    def _share(self, state: RequestState, target: TickTarget) -> TickTarget:
        """The part of the tick that a prompt may fill: a long one with slack leaves some of it to others."""
        if not state.long or not self._config.chunk_preemption:
            return target
        if self._prompts.policy.paces:
            return target.within(self._config.idle_tick_s / self._shapes.stages)
        if len(self._prompts) == 1:
            return target
        return target.share(slack(state, self._now), self._config.rho_max)

    def _place(self, order: Order, state: RequestState, priority: float) -> tuple[int, ...] | None:
        """Groups that have the pages of a waiting request, made free by preemption if need be; None if there are none.

        Where others have been admitted past it for too long, or its pages come when chunks in flight have left, nobody
        behind it is admitted in this round.
        """
        groups = self._residents.place(state)
        if groups is not None:
            return groups
        draft, now = self._draft, self._now
        draft.blocked += 1
        state.blocked_since = min(state.blocked_since, now)
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
        start = min(state.found[groups[0]], self._shapes.per_group - 1) if state.found else 0
        if not draft.length(state, start, groups[:1], target):
            return 0
        self._admissions.admit(state, groups, self._tick - 1)
        draft.admitted.append(state)
        return draft.length(state, state.scheduled, state.owners, target)

    def _preempt(self, state: RequestState) -> None:
        self._draft.preempted.append(state)
        self._admissions.preempt(state, self._now)

    def _serve(self, state: RequestState, length: int) -> None:
        """Plan a chunk of an admitted prompt."""
        self._draft.prompt(state, length, slack(state, self._now))
        self._prompts.served(state, self._tick)
