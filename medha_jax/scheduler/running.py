"""Who holds pages and a slot, who could have them, and who would have to give theirs up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medha_jax.config import SchedulerConfig
from medha_jax.kv.groups import GroupedPages
from medha_jax.scheduler.kvp_placement import Placement, attention_seen
from medha_jax.scheduler.policies.base import Columns, Policy
from medha_jax.scheduler.prefill_queue import PrefillQueue
from medha_jax.scheduler.request import RequestState
from medha_jax.specs.sizes import parts_of
from medha_jax.specs.tick_shapes import TickShapes


class RunningRequests:
    """Admitted requests: owns the slots, the pages and the count of attention work of every group.

    Args:
        config: whether prefixes are cached, and how often a request may be preempted.
        shapes: slots and groups.
        pages: of all groups.
    """

    def __init__(self, config: SchedulerConfig, shapes: TickShapes, pages: GroupedPages) -> None:
        self._config, self._shapes, self._pages = config, shapes, pages
        self._free_slots = list(range(shapes.slots - 1, -1, -1))
        self._placement = Placement(shapes.groups, shapes.per_group)
        self._holders: dict[int, RequestState] = {}

    def __len__(self) -> int:
        return len(self._holders)

    @property
    def holders(self) -> Sequence[RequestState]:
        """Every admitted request, in the order of admission."""
        return list(self._holders.values())

    @property
    def pending(self) -> tuple[int, ...]:
        """Attention work of each group that admitted prompts have left, in tokens²."""
        return self._placement.pending

    @property
    def free_slots(self) -> int:
        """Slots that nobody has."""
        return len(self._free_slots)

    @property
    def free_pages(self) -> tuple[int, ...]:
        """Pages of each group that nobody holds."""
        return self._pages.free

    @property
    def cached_pages(self) -> tuple[int, ...]:
        """Of the free pages of each group, those that the prefix cache knows."""
        return self._pages.idle

    def place(self, state: RequestState) -> tuple[int, ...] | None:
        """Groups that a waiting request would get, in order; None if no slot or not enough pages are free."""
        parts = self._parts(state)
        if not self._free_slots:
            return None
        groups = self._placement.choose(parts, self._pages.free)
        if groups is None or not self._config.prefix_cache:
            return groups
        if state.found is None:
            state.found = self._pages.cached_prefix(state.ids(0, state.fill), state.request.cache_salt)
        seen = [attention_seen(0, tokens, self._shapes.per_group) for tokens in state.found]
        return self._placement.choose(parts, self._pages.free, [-work for work in seen])

    def admit(self, state: RequestState, groups: Sequence[int]) -> None:
        """Give a request a slot and its pages on groups that `place` named; cached tokens count as computed."""
        ids = state.ids(0, state.fill) if self._config.prefix_cache else ()
        holding = self._pages.reserve(state.tokens, groups, ids, state.request.cache_salt)
        state.holding, state.slot = holding, self._free_slots.pop()
        state.scheduled = state.computed = holding.cached
        state.owners = holding.owners(state.scheduled)
        self._placement.add(holding.groups, state.scheduled, state.fill)
        self._holders[state.number] = state

    def scheduled(self, state: RequestState, end: int) -> None:
        """The request's chunk up to position `end` is in a plan."""
        holding = state.holding
        assert holding is not None
        if state.scheduled < state.fill:
            self._placement.remove(holding.groups, state.scheduled, end)
        state.scheduled = end
        if end % self._shapes.per_group == 0:
            state.owners = holding.owners(end)

    def grown(self, state: RequestState, before: int) -> None:
        """The prompt of an admitted request has grown; `before` tokens of it could be fed until now."""
        assert state.holding is not None
        self._placement.add(state.holding.groups, before, state.fill)

    def publish(self, state: RequestState) -> None:
        """Let later requests find the pages that this one has filled."""
        if self._config.prefix_cache and state.holding is not None:
            known = min(state.computed, len(state.request.prompt) + len(state.generated))
            self._pages.publish(state.holding, state.ids(0, known), known)

    def release(self, state: RequestState) -> None:
        """Take slot and pages back from a request that has nothing in flight."""
        holding = state.holding
        assert holding is not None and not state.flying
        self.publish(state)
        if state.scheduled < state.fill:
            self._placement.remove(holding.groups, state.scheduled, state.fill)
        self._pages.release(holding)
        self._free_slots.append(state.slot)
        del self._holders[state.number]
        state.holding, state.owners, state.slot, state.leaving = None, (), -1, False

    def forget(self) -> None:
        """The pools have lost their contents; nobody may be admitted."""
        self._pages.forget()

    def victims(
        self, state: RequestState, priority: float, policy: Policy, now: float, spared: Sequence[RequestState]
    ) -> list[RequestState] | None:
        """Admitted requests to preempt so that a waiting one fits, least urgent first; None if that does not help.

        A victim must be less urgent than the waiting request even when its work is to be done again, must not have
        been preempted `max_preemptions` times before, and must be needed. None are where requests that are leaving
        already make room.

        Args:
            state: the waiting request.
            priority: its own, by `policy`.
            policy: the order.
            now: seconds.
            spared: who is not to be preempted.
        """
        holders = self.holders
        free, slots = list(self._pages.free), self.free_slots
        for holder in holders:
            if holder.leaving:
                slots += 1
                _give(free, holder)
        parts = self._parts(state)
        if self._fits(parts, free, slots):
            return []
        most = self._config.max_preemptions
        able = [h for h in holders if not h.leaving and h.preemptions < most and h not in spared]
        if not able:
            return None
        arrival, due, total, tokens, number = np.array(
            [(h.request.arrival_s, h.due, h.total, h.tokens, h.number) for h in able], float
        ).T
        again = Columns(arrival, due, total, total, tokens, number, np.ones(len(able), bool))
        urgency = policy.urgency(again, now)
        chosen: list[RequestState] = []
        for at in np.argsort(-urgency, kind="stable").tolist():
            if urgency[at] <= priority:
                return None
            chosen.append(able[at])
            slots += 1
            _give(free, able[at])
            if self._fits(parts, free, slots):
                return self._needed(parts, chosen, free, slots)
        return None

    def _needed(
        self, parts: Sequence[int], chosen: list[RequestState], free: list[int], slots: int
    ) -> list[RequestState]:
        """Those without whom the request would not fit."""
        needed = []
        for holder in chosen:
            without = list(free)
            _give(without, holder, -1)
            if self._fits(parts, without, slots - 1):
                free, slots = without, slots - 1
            else:
                needed.append(holder)
        return needed

    def _fits(self, parts: Sequence[int], free: Sequence[int], slots: int) -> bool:
        return slots > 0 and self._placement.choose(parts, free) is not None

    def _parts(self, state: RequestState) -> tuple[int, ...]:
        return parts_of(state.tokens, self._shapes.per_group, self._shapes.page_size)


def _give(free: list[int], holder: RequestState, sign: int = 1) -> None:
    """Count a request's pages as free, or with sign -1 as held."""
    assert holder.holding is not None
    for group, pages in zip(holder.holding.groups, holder.holding.pages, strict=True):
        free[group] += sign * len(pages)


class Admissions:
    """Gives requests their pages and takes them back; owner of the count of tokens that wait.

    Args:
        prompts: told who may run.
        residents: hands out slots and pages.
    """

    def __init__(self, prompts: PrefillQueue, residents: RunningRequests) -> None:
        self._prompts, self._residents = prompts, residents
        self._waiting_tokens = 0

    @property
    def waiting_tokens(self) -> int:
        """Tokens of requests that are not admitted: of their prompts, and those that they generated before."""
        return self._waiting_tokens

    def count(self, tokens: int) -> None:
        """So many more tokens wait, or fewer."""
        self._waiting_tokens += tokens

    def admit(self, state: RequestState, groups: Sequence[int], tick: int) -> None:
        """Give a waiting request slot and pages on `groups`; its first chunk comes in the tick after `tick`."""
        self._residents.admit(state, groups)
        self.count(-state.known)
        self._prompts.admitted(state, tick)

    def preempt(self, state: RequestState, now: float) -> None:
        """Take a request's pages and slot; its tokens are kept and are computed again later."""
        state.preemptions += 1
        if state.queued:
            self._prompts.remove(state)
        state.leaving = True
        if not state.flying:
            self.requeue(state, now)

    def requeue(self, state: RequestState, now: float) -> None:
        """A preempted request has nothing in flight any more: it waits again."""
        self._residents.release(state)
        state.fill = state.fillable
        self.count(state.known)
        state.scheduled = state.computed = state.chunk = 0
        state.found = None
        self._prompts.waits_again(state, now)
