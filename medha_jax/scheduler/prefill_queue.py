"""Prompts that have work left: their order and their predicted seconds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import numpy as np

from medha_jax.config import SchedulerConfig
from medha_jax.plan import Chunk
from medha_jax.scheduler.chunking import PrefillTable
from medha_jax.scheduler.deadlines import due_at
from medha_jax.scheduler.policies.base import LEAST_WORK_S, Columns, Policy
from medha_jax.scheduler.policies.formulas import policy_from
from medha_jax.scheduler.priority_classes import PriorityClasses
from medha_jax.scheduler.request import PREFILLING, WAITING, RequestState, age
from medha_jax.scheduler.time_model import TimeModel
from medha_jax.specs.tick_shapes import TickShapes
from medha_jax.tenants import TenantCounts

ARRIVAL, NUMBER, DUE, REMAINING, TOTAL, TOKENS, LAST_TICK, PRIORITY, FIELDS = range(9)
NEVER = np.inf  # the LAST_TICK of requests that are not admitted
FIRST_ROWS = 128


class PrefillQueue:
    """Owns the waiting and admitted prompts that have work left, and the prediction of their work.

    It also counts the tokens of waiting requests, and remembers preempted requests until they are admitted again.
    `pool_tokens` are the KV tokens that all groups hold together.
    """

    def __init__(self, config: SchedulerConfig, shapes: TickShapes, model: TimeModel, pool_tokens: int) -> None:
        self._config, self._shapes, self._model = config, shapes, model
        self.policy = policy_from(config, pool_tokens)
        self.classes = PriorityClasses(config.priority_share, self.policy)
        self._table = self._build_table()
        self._backlog = Backlog()
        self._preempted: list[RequestState] = []
        self._waiting_tokens = TenantCounts()

    def __len__(self) -> int:
        return len(self._backlog)

    @property
    def waiting_tokens(self) -> TenantCounts:
        """Tokens that the waiting requests count for (`RequestState.claimed`)."""
        return self._waiting_tokens

    def seconds(self, tokens: int) -> float:
        """Predicted seconds of a prompt of `tokens` tokens, alone on the machine."""
        return self._table.between(0, tokens)

    def between(self, done: int, total: int) -> float:
        """Predicted seconds of the prompt tokens `[done, total)`, alone on the machine."""
        return self._table.between(done, total)

    def add(self, state: RequestState) -> None:
        """Take in a new request."""
        self._count(state, state.claimed)
        self._assess(state)
        if state.queued:
            self._backlog.add(state)

    def follow(self, state: RequestState, lead: RequestState) -> None:
        """Let an output run that waited for its lead, and predict its work with the pages that the lead computed."""
        size, prompt = self._shapes.page_size, len(lead.request.prompt)
        state.follow(None if lead.chain is None else lead.chain.first(prompt // size))
        done = 0 if lead.chain is None else min(lead.computed, prompt - 1) // size * size
        state.predict(self._table.between(done, state.to_feed), state.total)
        self._backlog.add(state)

    def extend(self, state: RequestState, ids: Sequence[int], complete: bool) -> None:
        """Add token ids to a request's prompt; `complete` with the last ones."""
        if state.queued:
            self._backlog.remove(state)
        before = state.claimed
        state.grow(ids, complete)
        if state.phase is WAITING:
            self._count(state, state.claimed - before)
        self._assess(state)  # also while it is in no queue: it is due by all of its tokens
        if state.queued:
            self._backlog.add(state)
            if state.phase is PREFILLING:
                self._backlog.note_tick(state)

    def remove(self, state: RequestState) -> None:
        """Forget a request that is about to end or to be preempted."""
        if state.phase is WAITING:
            self._count(state, -state.claimed)
        if state.queued:
            self._drop(state)

    def admitted(self, state: RequestState, tick: int) -> None:
        """Note that a waiting request has pages now; its first chunk is planned in the tick after `tick`."""
        self._count(state, -state.claimed)
        self._note_tick(state, tick)
        # under a policy that bounds waits, an interrupted answer goes first until it resumes (`overdue`)
        if state in self._preempted and not (self.policy.bounds_waits and state.generated):
            self._preempted.remove(state)

    def planned(self, state: RequestState, tick: int) -> None:
        """Note that a chunk of an admitted prompt is in the plan of a tick."""
        before = state.remaining
        if state.queued:
            self._note_tick(state, tick)
        else:
            state.note_tick(tick, 0.0)
            self._drop(state)
        self._worked(state.number, before - state.remaining)

    def entered(self, state: RequestState, chunk: Chunk) -> float:
        """Note that a chunk of an admitted prompt enters the slice lane; returns its predicted seconds of work."""
        if not state.queued:
            self._drop(state)
        return self._table.between(chunk.start, chunk.end)

    def served(self, state: RequestState, tick: int, seconds: float, left: float) -> None:
        """Note that a slice of plan `tick` has run layers of a prompt.

        Args:
            seconds: of work done for the prompt.
            left: predicted until its chunks have left the slice lane.
        """
        if state.queued:
            self._note_tick(state, tick, left)
        else:
            state.note_tick(tick, 0.0, left)
        self._worked(state.number, seconds)

    def requeued(self, state: RequestState) -> None:
        """Take in a preempted request that has given its pages back and waits again."""
        self._count(state, state.claimed)
        work = self.seconds(state.to_feed)
        state.predict(work, work)
        if state.queued:
            self._preempted.append(state)
            self._backlog.add(state)

    def before(self, state: RequestState, now: float) -> tuple[int, float]:
        """Prompts ahead of a waiting request: how many of them wait, and the seconds of work of all of them."""
        return self._backlog.before(state, self.policy, now, self.classes)

    def order(self, now: float) -> PolicyOrder:
        """All prompts in the order of their classes and the policy."""
        return self._backlog.order(self.policy, now, self.classes)

    def over_quota(self) -> list[RequestState]:
        """Prompts that must give up their pages, because the policy's quota is exceeded.

        Interrupted answers keep theirs: they go first (`overdue`), so they would lose and get them for ever.
        """
        numbers = set(self.policy.over_quota(self._backlog.columns).tolist())
        if not numbers:
            return []
        return [state for state in self._backlog if state.number in numbers and not state.generated]

    def longest_unplanned(self) -> list[RequestState]:
        """Admitted prompts; the one whose last chunk is longest ago comes first."""
        return self._backlog.longest_unplanned()

    def overdue(self, now: float) -> list[RequestState]:
        """Preempted requests that have waited too long for their pages.

        A policy that bounds waits handles them itself, except interrupted answers: it would give those up as late.
        """
        if self.policy.bounds_waits:
            return [state for state in self._preempted if state.generated]
        return [state for state in self._preempted if now - state.preempted_at >= self._config.bypass_s]

    def renew(self) -> None:
        """Predict every prompt's work again if the time model has changed."""
        if self._table.stale():
            self._predict()

    def use(self, shapes: TickShapes) -> None:
        """Predict every prompt's work for other shapes from now on."""
        self._shapes = shapes
        self._predict()

    def _predict(self) -> None:
        self._table = self._build_table()
        states = list(self._backlog)
        done = np.array([state.scheduled for state in states], float)
        ends = self._table.elapsed(np.array([state.to_feed for state in states], float))
        unplanned = ends - self._table.elapsed(done)
        for state, left, total in zip(states, unplanned.tolist(), ends.tolist(), strict=True):
            state.predict(left, total)
        self._backlog.set_work(np.array([state.remaining for state in states]), ends)

    def _assess(self, state: RequestState) -> None:
        """Predict a request's work from its known tokens, and the time at which it is due."""
        total = self.seconds(state.to_feed)
        state.predict(self._table.between(state.scheduled, state.to_feed), total)
        long = len(state.request.prompt) >= self._config.long_tokens
        state.expect(due_at(state.request, self._config, total), long)

    def _count(self, state: RequestState, tokens: int) -> None:
        self._waiting_tokens.add(state.request.tenant, tokens)

    def _note_tick(self, state: RequestState, tick: int, in_lane: float = 0.0) -> None:
        state.note_tick(tick, self._table.between(state.scheduled, state.to_feed), in_lane)
        self._backlog.note_tick(state)

    def _worked(self, number: int, seconds: float) -> None:
        self.policy.planned(number, seconds)
        self.classes.planned(number, seconds)

    def _drop(self, state: RequestState) -> None:
        self._backlog.remove(state)
        if state in self._preempted:
            self._preempted.remove(state)

    def _build_table(self) -> PrefillTable:
        config = self._config
        return PrefillTable(self._model, self._shapes, config.tpot_target_s / self._shapes.stages, config.slice_s)


def slack(state: RequestState, now: float) -> float:
    """Relative slack of a prompt: the seconds that it can lose, over those of its whole predicted work."""
    return (state.due - now - state.remaining) / max(state.total, LEAST_WORK_S)


class Backlog:
    """Waiting requests, and admitted ones whose prompt is not fully scheduled.

    Rows are ordered by (arrival, number), which breaks the ties of every policy.
    """

    def __init__(self) -> None:
        self._table = np.zeros((FIELDS, 256))
        self._states: list[RequestState] = []

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[RequestState]:
        return iter(self._states)

    def add(self, state: RequestState) -> None:
        """Take in a waiting request."""
        count = len(self._states)
        if count == self._table.shape[1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
        row = self._row(state)
        self._table[:, row + 1 : count + 1] = self._table[:, row:count].copy()
        times = state.request.arrival_s, state.number, state.due, state.remaining, state.total
        self._table[:, row] = *times, state.known, NEVER, state.request.priority
        self._states.insert(row, state)

    def remove(self, state: RequestState) -> None:
        """Forget a request."""
        row, count = self._row(state), len(self._states)
        self._table[:, row : count - 1] = self._table[:, row + 1 : count].copy()
        del self._states[row]

    def note_tick(self, state: RequestState) -> None:
        """Update the row of a request that was admitted or got a chunk."""
        row = self._row(state)
        self._table[REMAINING, row] = state.remaining
        self._table[LAST_TICK, row] = state.last_planned_tick

    def set_work(self, remaining: np.ndarray, total: np.ndarray) -> None:
        """Replace the predicted seconds of all requests, in the order of iteration."""
        count = len(self._states)
        self._table[REMAINING, :count] = remaining
        self._table[TOTAL, :count] = total

    def longest_unplanned(self) -> list[RequestState]:
        """Admitted requests; the one whose last chunk is longest ago comes first."""
        last = self._table[LAST_TICK, : len(self._states)]
        rows = np.flatnonzero(last != NEVER)
        return [self._states[row] for row in rows[np.argsort(last[rows], kind="stable")]]

    @property
    def columns(self) -> Columns:
        """What policies see of the requests, in the order of iteration; valid until the next change."""
        table = self._table[:, : len(self._states)]
        times = table[ARRIVAL], table[DUE], table[REMAINING], table[TOTAL]
        return Columns(*times, table[TOKENS], table[NUMBER], table[LAST_TICK] != NEVER)

    def before(self, state: RequestState, policy: Policy, now: float, classes: PriorityClasses) -> tuple[int, float]:
        """As `PrefillQueue.before`."""
        count, row = len(self._states), self._row(state)
        table = self._table[:, :count]
        priorities = policy.order(self.columns, now)
        first = (priorities < priorities[row]) | ((priorities == priorities[row]) & (np.arange(count) < row))
        ranks = classes.ranks(table[PRIORITY], table[NUMBER], now)
        if ranks is not None:
            first = (ranks < ranks[row]) | ((ranks == ranks[row]) & first)
        return int(np.sum(first & (table[LAST_TICK] == NEVER))), float(np.sum(table[REMAINING], where=first))

    def order(self, policy: Policy, now: float, classes: PriorityClasses | None = None) -> PolicyOrder:
        """The requests by class, if there are classes, then by policy, least priority first."""
        columns = self.columns
        priorities = policy.order(columns, now)
        row = self._table[PRIORITY, : len(self._states)]
        ranks = None if classes is None else classes.ranks(row, columns.number, now)
        return PolicyOrder(self._states, priorities, columns.admitted, ranks)

    def _row(self, state: RequestState) -> int:
        """The row of a request, or the row at which it would be inserted."""
        return bisect_left(self._states, age(state), key=age)


class PolicyOrder:
    """Iterates once over the backlog by priority; the later requests are sorted only on demand.

    `priorities`, `admitted` and `ranks`, which come before the priorities, are arrays `[requests]`. The backlog may
    change during the iteration.
    """

    def __init__(
        self,
        states: list[RequestState],
        priorities: np.ndarray,
        admitted: np.ndarray,
        ranks: np.ndarray | None = None,
    ) -> None:
        self._states = list(states)
        self._priorities, self._admitted, self._ranks = priorities, admitted, ranks
        self._only_admitted = False

    def only_admitted(self) -> None:
        """Skip the waiting requests from here on."""
        self._only_admitted = True

    def __iter__(self) -> Iterator[tuple[RequestState, float]]:
        """Requests and their priorities."""
        for rows in self._blocks():
            at = 0
            while at < len(rows):
                if self._only_admitted:
                    left = rows[at:]
                    for row in left[self._admitted[left]].tolist():
                        if self._priorities[row] < np.inf:
                            yield self._states[row], float(self._priorities[row])
                    break
                row = int(rows[at])
                if self._priorities[row] == np.inf:
                    return
                yield self._states[row], float(self._priorities[row])
                at += 1

    def _blocks(self) -> Iterator[np.ndarray]:
        """Rows in order: first those with the least priorities, then all others."""
        priorities = self._priorities
        if self._ranks is not None:
            yield np.lexsort((priorities, np.where(priorities == np.inf, np.inf, self._ranks)))
            return
        if len(priorities) <= 2 * FIRST_ROWS:
            yield np.argsort(priorities, kind="stable")
            return
        border = np.partition(priorities, FIRST_ROWS)[FIRST_ROWS]
        first = np.flatnonzero(priorities <= border)
        yield first[np.argsort(priorities[first], kind="stable")]
        rest = np.flatnonzero(priorities > border)
        if self._only_admitted:
            rest = rest[self._admitted[rest]]
        yield rest[np.argsort(priorities[rest], kind="stable")]
