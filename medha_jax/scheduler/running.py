"""Requests that hold a slot and pages: how they are admitted, preempted and requeued."""

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
    """Owns slots, pages and each group's count of attention work; admits requests, and takes both back.

    Requests come from `queue`, and preempted ones go back to it.
    """

    def __init__(self, config: SchedulerConfig, shapes: TickShapes, pages: GroupedPages, queue: PrefillQueue) -> None:
        self._config, self._shapes, self._pages, self._queue = config, shapes, pages, queue
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
    def free_slots(self) -> int:
        """Slots without a request."""
        return len(self._free_slots)

    def place(self, state: RequestState) -> tuple[int, ...] | None:
        """Groups that a waiting request would get, in order; None without a free slot or enough free pages."""
        parts = self._parts(state)
        if not self._free_slots:
            return None
        groups = self._placement.choose(parts, self._pages.free)
        if groups is None or not self._config.prefix_cache:
            return groups
        cached = state.cached_by_group
        if cached is None:
            cached = self._pages.cached_prefix(state.ids(0, state.to_feed), state.request.cache_salt)
            state.find_cached(cached)
        seen = [attention_seen(0, tokens, self._shapes.per_group) for tokens in cached]
        return self._placement.choose(parts, self._pages.free, [-work for work in seen])

    def admit(self, state: RequestState, groups: Sequence[int], tick: int) -> None:
        """Give a waiting request a slot, and its pages on the groups that `place` returned.

        Cached tokens count as computed. Its first chunk is planned in the tick after `tick`.
        """
        ids = state.ids(0, state.to_feed) if self._config.prefix_cache else ()
        holding = self._pages.reserve(state.tokens, groups, ids, state.request.cache_salt)
        state.admit(holding, self._free_slots.pop())
        self._placement.add(holding.groups, state.scheduled, state.to_feed)
        self._holders[state.number] = state
        self._queue.admitted(state, tick)

    def plan_prompt_chunk(self, state: RequestState, end: int) -> None:
        """Note that a chunk of a request's prompt up to position `end` is in a plan."""
        assert state.holding is not None
        self._placement.remove(state.holding.groups, state.scheduled, end)
        state.plan_prompt_chunk(end)

    def grown(self, state: RequestState, before: int) -> None:
        """Count the work of an admitted request whose prompt has grown; `before` was its earlier `to_feed`."""
        assert state.holding is not None
        self._placement.add(state.holding.groups, before, state.to_feed)

    def preempt(self, state: RequestState, now: float) -> None:
        """Take a request's pages and slot back, now or when its chunks in flight have left."""
        self._queue.remove(state)
        state.preempt()
        if not state.in_flight:
            self.requeue(state, now)

    def requeue(self, state: RequestState, now: float) -> None:
        """Make a preempted request with nothing in flight wait again; its tokens must be computed again."""
        self.release(state)
        state.requeue(now)
        self._queue.requeued(state)

    def publish(self, state: RequestState) -> None:
        """Offer the pages that a request has filled to the prefix cache."""
        if self._config.prefix_cache and state.holding is not None:
            known = min(state.computed, len(state.request.prompt) + len(state.generated))
            self._pages.publish(state.holding, state.ids(0, known), known)

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
        state.release()

    def forget(self) -> None:
        """Drop all cached pages: the pools have lost their contents. No request may hold pages."""
        self._pages.forget()

    def victims(
        self, state: RequestState, priority: float, policy: Policy, now: float, spared: Sequence[RequestState]
    ) -> list[RequestState] | None:
        """Admitted requests to preempt so that a waiting one fits, least urgent first; None if that does not help.

        `state` is the waiting request and `priority` its priority by `policy`. A victim must be less urgent, even with
        all its work to be done again. It must be needed, have fewer than `max_preemptions` preemptions, and not be
        `spared`. The list is empty if requests that are leaving already free enough.
        """
        free, slots, able, most = list(self._pages.free), self.free_slots, [], self._config.max_preemptions
        for holder in self._holders.values():
            if not holder.running:
                slots += 1
                _give(free, holder)
            elif holder.preemptions < most and holder not in spared:
                able.append(holder)
        parts = self._parts(state)
        if self._fits(parts, free, slots):
            return []
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
        """The chosen requests that must really go so that the waiting one fits."""
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
