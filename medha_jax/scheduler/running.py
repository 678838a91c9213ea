"""Requests that hold a slot and pages: how they are admitted, grow, and are preempted and requeued."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from medha_jax.config import SchedulerConfig
from medha_jax.kv.groups import GroupedPages
from medha_jax.scheduler.kvp_placement import Placement, attention_seen
from medha_jax.scheduler.policies.base import Columns, Policy
from medha_jax.scheduler.prefill_queue import PrefillQueue
from medha_jax.scheduler.request import RequestState, age, standing
from medha_jax.specs.sizes import parts_of
from medha_jax.specs.tick_shapes import TickShapes
from medha_jax.tenants import TenantCounts


class RunningRequests:
    """Owns slots, pages and each group's count of attention work; admits requests, and takes both back.

    Pages are set aside for known tokens; what a request generates takes one more at a time (docs/memory.md). Requests
    come from `queue`, and preempted ones go back to it.
    """

    def __init__(self, config: SchedulerConfig, shapes: TickShapes, pages: GroupedPages, queue: PrefillQueue) -> None:
        self._config, self._shapes, self._pages, self._queue = config, shapes, pages, queue
        self._free_slots = list(range(shapes.slots - 1, -1, -1))
        self._placement = Placement(shapes.groups, shapes.per_group)
        self._holders: dict[int, RequestState] = {}
        self._families: Counter[int] = Counter()  # admitted outputs of each request
        self._requests = TenantCounts()

    def __len__(self) -> int:
        return len(self._holders)

    @property
    def holders(self) -> Sequence[RequestState]:
        """Every admitted request, in the order of admission."""
        return list(self._holders.values())

    @property
    def requests(self) -> TenantCounts:
        """Requests that hold pages, in any of their outputs."""
        return self._requests

    @property
    def free_slots(self) -> int:
        """Slots without a request."""
        return len(self._free_slots)

    def place(self, state: RequestState) -> tuple[int, ...] | None:
        """Groups that a waiting request would get, in order; None without a free slot or enough free pages."""
        if not self._free_slots:
            return None
        parts, free = self._parts(state), self._spare()
        groups, held = self._placement.choose(parts, free), None
        cached = state.cached_by_group
        if groups is None and cached is not None and state.lead is not None:
            assert state.chain is not None, "it was looked up"
            held = self._pages.held(state.chain, cached)  # by the other outputs of its request
            groups = self._placement.choose(parts, free, held=held)
        if groups is None or cached is None:
            return groups
        seen = [attention_seen(0, tokens, self._shapes.per_group) for tokens in cached]
        return self._placement.choose(parts, free, [-work for work in seen], held)

    def admit(self, state: RequestState, groups: Sequence[int], tick: int) -> None:
        """Give a waiting request a slot, and set pages aside on the groups that `place` returned.

        Cached tokens count as computed. Its first chunk is planned in the tick after `tick`.
        """
        ids: Sequence[int] = ()
        # pages that were not looked up would take time now, and what is scored is computed
        if state.chain is not None and state.scores is None:
            ids = state.ids(0, min(state.to_feed, len(state.chain) * self._shapes.page_size + 1))
        holding = self._pages.reserve(self._needs(state), groups, ids, state.chain)
        state.admit(holding, self._free_slots.pop())
        self._placement.add(holding.groups, state.scheduled, state.to_feed)
        self._holders[state.number] = state
        self._families[state.family] += 1
        if self._families[state.family] == 1:
            self._requests.add(state.request.tenant, 1)
        self._queue.admitted(state, tick)

    def plan_prompt_chunk(self, state: RequestState, end: int) -> None:
        """Note that a chunk of a request's prompt up to position `end`, which has its pages, is in a plan."""
        assert state.holding is not None
        self._placement.remove(state.holding.groups, state.scheduled, end)
        state.plan_prompt_chunk(end)

    def take(self, state: RequestState, end: int) -> bool:
        """Take the pages of an admitted request's tokens before position `end`; False if too few are free."""
        holding = state.holding
        assert holding is not None
        if end > holding.aside:
            self._join(state, end)
            if not self._pages.extend(holding, end):
                return False
        self._pages.take(holding, end)
        return True

    def grown(self, state: RequestState, before: int) -> bool:
        """Count the work of an admitted request whose prompt has grown, and set pages aside for it.

        `before` was its earlier `to_feed`. Returns False if too few pages are free. One that is leaving needs none.
        """
        assert state.holding is not None
        if state.running:
            self._join(state, self._needs(state))
        self._placement.add(state.holding.groups, before, state.to_feed)
        return not state.running or self._pages.extend(state.holding, self._needs(state))

    def preempt(self, state: RequestState, now: float, counted: bool = True) -> None:
        """Take a request's pages and slot back, now or when its chunks in flight have left.

        `counted` as in `RequestState.preempt`.
        """
        self._queue.remove(state)
        state.preempt(counted)
        if not state.in_flight:
            self.requeue(state, now)

    def requeue(self, state: RequestState, now: float) -> None:
        """Make a preempted request with nothing in flight wait again; its tokens must be computed again."""
        self.release(state)
        state.requeue(now)
        self._queue.requeued(state)

    def publish(self, state: RequestState) -> None:
        """Offer the pages that a request has filled to the prefix cache, unless it is spoiled."""
        if state.spoiled:
            return
        holding, prompt = state.holding, state.request.prompt
        known = min(state.computed, state.known)
        if self._config.prefix_cache and holding is not None and holding.full(known) > holding.published:
            self._pages.publish(holding, prompt if known <= len(prompt) else state.ids(0, known), known)

    def release(self, state: RequestState) -> None:
        """Take slot and pages back from a request with nothing in flight."""
        holding = state.holding
        assert holding is not None and not state.in_flight
        self.publish(state)
        if state.scheduled < state.to_feed:
            self._placement.remove(holding.groups, state.scheduled, state.to_feed)
        self._pages.release(holding)
        self._free_slots.append(state.slot)
        del self._holders[state.number]
        self._families[state.family] -= 1
        if not self._families[state.family]:
            del self._families[state.family]
            self._requests.add(state.request.tenant, -1)
        state.release()

    def forget(self) -> None:
        """Drop all cached pages, those in host memory too: the pools lost their contents. No request may hold pages."""
        self._pages.forget()

    def victims(
        self, state: RequestState, priority: float, policy: Policy, now: float, spared: Sequence[RequestState]
    ) -> list[RequestState] | None:
        """Admitted requests to preempt so that a waiting one fits, least urgent first; None if that does not help.

        `state` is the waiting request and `priority` its priority by `policy`. A victim must be of a later class, or
        less urgent, even with all its work to be done again, or have nothing to compute. It must be needed, have fewer
        than `max_preemptions` preemptions, and not be `spared`. The last class goes first. The list is empty if
        requests that are leaving already free enough.
        """
        free, slots, able, idle = self._spare(), self.free_slots, [], []
        for holder in self._holders.values():
            if not holder.running:
                slots += 1
                self._give(free, holder)
            elif holder.idle:
                idle.append(holder)
            elif self._may_lose(holder) and holder not in spared:
                able.append(holder)
        parts = self._parts(state)
        if self._fits(parts, free, slots):
            return []
        urgency = _urgency(able, policy, now)
        classes, own = self._queue.classes, state.request.priority
        ranks = np.array([classes.rank(holder) for holder in able])
        loses = (ranks > own) | (classes.comparable(state, ranks) & (urgency > priority))
        order = np.lexsort((-urgency, -ranks))
        chosen: list[RequestState] = []
        for holder in (*idle, *(able[at] for at in order[loses[order]].tolist())):
            chosen.append(holder)
            slots += 1
            self._give(free, holder)
            if self._fits(parts, free, slots):
                return self._needed(parts, chosen, free, slots)
        return None

    def yielding(
        self, state: RequestState, policy: Policy, now: float, spared: Sequence[RequestState]
    ) -> RequestState | None:
        """The request to preempt so that a running one gets its next page; None if it must wait.

        One with nothing to compute, or else of the last class the least urgent by `policy`, with all its work to be
        done again; of equal ones the youngest. It must come after `state` by that, have fewer than `max_preemptions`
        preemptions and not be `spared`. None, too, if a holder is leaving: its pages come soon.
        """
        holders = self._rivals(state)
        if not all(holder.running for holder in holders):
            return None
        for holder in holders:
            if holder.idle:
                return holder
        able = [holder for holder in holders if self._may_lose(holder) and holder not in spared]
        urgency = _urgency([*able, state], policy, now).tolist()
        rank = self._queue.classes.rank
        ranks = [(rank(one), value, *age(one)) for value, one in zip(urgency, [*able, state], strict=True)]
        last = max(ranks)
        return None if last == ranks[-1] else able[ranks.index(last)]

    def last_resort(self, state: RequestState, short: set[RequestState]) -> RequestState | None:
        """The last holder, if every holder of the pages that `state` needs is `short` of some, and it the first.

        The first is the oldest of the first class. Nobody would go on otherwise.
        """
        holders = self._rivals(state)
        if (
            not holders
            or not short.issuperset(holders)
            or any(standing(holder) < standing(state) for holder in holders)
        ):
            return None
        return max(holders, key=standing)

    def _rivals(self, state: RequestState) -> list[RequestState]:
        """The others that have pages of the group of a running request's next token."""
        assert state.holding is not None
        group = state.holding.groups[state.scheduled // self._shapes.per_group]
        return [one for one in self._holders.values() if one is not state and _owned(one).get(group)]

    def _may_lose(self, holder: RequestState) -> bool:
        return self._config.preemption and holder.preemptions < self._config.max_preemptions

    def _join(self, state: RequestState, tokens: int) -> None:
        """Give an admitted request the groups for `tokens` tokens."""
        holding = state.holding
        assert holding is not None
        while len(holding.groups) * holding.per_group < tokens:
            self._pages.join(holding, self._placement.next(holding.groups, self._pages.free))
            state.joined()

    def _spare(self) -> list[int]:
        """Pages of each group for requests that wait: some are kept for the growth of those that run."""
        free, each = list(self._pages.free), self._config.growth_pages
        for holder in self._holders.values():
            for group in holder.owners:
                free[group] -= each
        return free

    def _give(self, spare: list[int], holder: RequestState, sign: int = 1) -> None:
        """Count a request's pages, and those kept for its growth, as spare, or with sign -1 as not."""
        for group, pages in _owned(holder).items():
            spare[group] += sign * pages
        for group in holder.owners:
            spare[group] += sign * self._config.growth_pages

    def _needed(
        self, parts: Sequence[int], chosen: list[RequestState], free: list[int], slots: int
    ) -> list[RequestState]:
        """The chosen requests that must really go so that the waiting one fits."""
        needed = []
        for holder in chosen:
            without = list(free)
            self._give(without, holder, -1)
            if self._fits(parts, without, slots - 1):
                free, slots = without, slots - 1
            else:
                needed.append(holder)
        return needed

    def _fits(self, parts: Sequence[int], free: Sequence[int], slots: int) -> bool:
        return slots > 0 and self._placement.choose(parts, free) is not None

    def _parts(self, state: RequestState) -> tuple[int, ...]:
        return parts_of(self._needs(state), self._shapes.per_group, self._shapes.page_size)

    def _needs(self, state: RequestState) -> int:
        """Tokens that a request gets pages for before it runs: those that are known, and the next one."""
        if self._config.reserve_output:
            return state.request.most
        return min(state.known + state.complete, state.request.most)


def _urgency(states: Sequence[RequestState], policy: Policy, now: float) -> np.ndarray:
    """Priorities of admitted requests by a policy, as if all their work had to be done again."""
    columns = [(one.request.arrival_s, one.due, one.total, one.known, one.number) for one in states]
    arrival, due, total, tokens, number = np.array(columns, float).reshape(-1, 5).T
    return policy.urgency(Columns(arrival, due, total, total, tokens, number, np.ones(len(states), bool)), now)


def _owned(holder: RequestState) -> dict[int, int]:
    """A request's pages by group, if it has any there."""
    assert holder.holding is not None
    both = zip(holder.holding.groups, holder.holding.owned, strict=True)
    return {group: pages for group, pages in both if pages}
