"""PrefillQueue that have work left: their order, and what their work is predicted to take."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from medha_jax.config import SchedulerConfig
from medha_jax.scheduler.chunking import PrefillTable
from medha_jax.scheduler.deadlines import due_at
from medha_jax.scheduler.policies.base import LEAST_WORK_S, Columns, Policy
from medha_jax.scheduler.policies.formulas import policy_from
from medha_jax.scheduler.request import RequestState
from medha_jax.scheduler.time_model import TimeModel
from medha_jax.specs.tick_shapes import TickShapes

ARRIVAL, NUMBER, DUE, REMAINING, TOTAL, TOKENS, SERVED, FIELDS = range(8)
WAITING = np.inf  # `served` of requests that are not admitted
FIRST_ROWS = 128


class PrefillQueue:
    """Owns the backlog, the prediction of every prompt's work, and the list of those that lost their pages.

    Args:
        config: policy and targets.
        shapes: of ticks.
        model: predicts their seconds.
    """

    def __init__(self, config: SchedulerConfig, shapes: TickShapes, model: TimeModel, pool_tokens: int) -> None:
        self._config, self._shapes, self._model = config, shapes, model
        self.policy = policy_from(config, pool_tokens)
        self._table = self._build_table()
        self._backlog = Backlog()
        self._preempted: list[RequestState] = []

    def __len__(self) -> int:
        return len(self._backlog)

    def seconds(self, tokens: int) -> float:
        """Predicted seconds of a prompt of so many tokens that has the machine to itself."""
        return self._table.between(0, tokens)

    def assess(self, state: RequestState) -> None:
        """Predict a request's work by the tokens that are known of it, and when it is due."""
        state.total = self.seconds(state.fill)
        state.remaining = self._table.between(state.scheduled, state.fill)
        state.due = due_at(state.request, self._config, state.total)
        state.long = len(state.request.prompt) >= self._config.long_tokens

    def add(self, state: RequestState) -> None:
        """A request has tokens to be fed."""
        self._backlog.add(state, state.remaining)
        state.queued = True

    def remove(self, state: RequestState) -> None:
        """It has none any more, or lost its pages, or has ended."""
        self._backlog.remove(state)
        state.queued = False
        if state in self._preempted:
            self._preempted.remove(state)

    def grown(self, state: RequestState) -> None:
        """More of its prompt has come."""
        if state.queued:
            self._backlog.remove(state)
            state.queued = False
        if state.prefilling and not state.leaving:
            self.assess(state)
            self.add(state)
            if state.holding is not None:
                self._backlog.serve(state, state.remaining, state.served)

    def admitted(self, state: RequestState, tick: int) -> None:
        """It has pages now, and its first chunk comes in the tick after `tick`."""
        self._note(state, tick)
        state.blocked_since = math.inf
        # under a policy that paces, an interrupted answer goes first until it goes on (`overdue`)
        if state in self._preempted and not (self.policy.paces and state.generated):
            self._preempted.remove(state)

    def served(self, state: RequestState, tick: int) -> None:
        """A chunk of it was planned."""
        before = state.remaining
        if state.prefilling:
            self._note(state, tick)
        else:
            state.served, state.remaining = tick, 0.0
            self.remove(state)
        self.policy.served(state.number, before - state.remaining)

    def waits_again(self, state: RequestState, now: float) -> None:
        """It has lost its pages, and what it was told is to be computed again."""
        state.preempted_at = now
        state.total = state.remaining = self.seconds(state.fill)
        self._preempted.append(state)
        self.add(state)

    def before(self, state: RequestState, now: float) -> tuple[int, float]:
        """Who is served before a waiting request: how many others wait, and seconds of work of all of them."""
        return self._backlog.before(state, self.policy, now)

    def order(self, now: float) -> Order:
        """All of them by policy."""
        return self._backlog.order(self.policy, now)

    def surplus(self) -> list[RequestState]:
        """Those that hold more pages than they should."""
        numbers = set(self.policy.surplus(self._backlog.columns).tolist())
        return [state for state in self._backlog if state.number in numbers] if numbers else []

    def longest_unserved(self) -> list[RequestState]:
        """The admitted ones, the one first whose last chunk is longest ago."""
        return self._backlog.longest_unserved()

    def overdue(self, now: float) -> list[RequestState]:
        """Those that have been out of their pages for too long.

        Where the policy sees to that, only answers that were interrupted: it would give up on them as too late.
        """
        if self.policy.paces:
            return [state for state in self._preempted if state.generated]
        return [state for state in self._preempted if now - state.preempted_at >= self._config.bypass_s]

    def renew(self) -> None:
        """Predict every prompt's work again, if the time model says something else by now."""
        if not self._table.stale():
            return
        self._table = self._build_table()
        states = list(self._backlog)
        done = np.array([state.scheduled for state in states], float)
        ends = self._table.elapsed(np.array([state.fill for state in states], float))
        remaining = ends - self._table.elapsed(done)
        self._backlog.set_work(remaining, ends)
        for state, left, total in zip(states, remaining.tolist(), ends.tolist(), strict=True):
            state.remaining, state.total = left, total

    def _note(self, state: RequestState, tick: int) -> None:
        state.served = tick
        state.remaining = self._table.between(state.scheduled, state.fill)
        self._backlog.serve(state, state.remaining, tick)

    def _build_table(self) -> PrefillTable:
        return PrefillTable(self._model, self._shapes, self._config.tpot_target_s / self._shapes.stages)


def slack(state: RequestState, now: float) -> float:
    """Relative slack of a prompt: the time that it can lose, over its whole predicted work."""
    return (state.due - now - state.remaining) / max(state.total, LEAST_WORK_S)


class Backlog:
    """Waiting requests and admitted ones whose prompt is not scheduled to its end.

    Rows are kept in the order of (arrival, number), which is how ties of every policy go.
    """

    def __init__(self) -> None:
        self._table = np.zeros((FIELDS, 256))
        self._states: list[RequestState] = []

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[RequestState]:
        return iter(self._states)

    def add(self, state: RequestState, remaining: float) -> None:
        """Take in a request that waits, with its predicted seconds of remaining work."""
        count = len(self._states)
        if count == self._table.shape[1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
        row = self._row(state)
        self._table[:, row + 1 : count + 1] = self._table[:, row:count].copy()
        times = state.request.arrival_s, state.number, state.due, remaining, state.total
        self._table[:, row] = *times, state.tokens, WAITING
        self._states.insert(row, state)

    def remove(self, state: RequestState) -> None:
        """Forget a request."""
        row, count = self._row(state), len(self._states)
        self._table[:, row : count - 1] = self._table[:, row + 1 : count].copy()
        del self._states[row]

    def serve(self, state: RequestState, remaining: float, tick: int) -> None:
        """A request got a chunk in tick number `tick`."""
        row = self._row(state)
        self._table[REMAINING, row] = remaining
        self._table[SERVED, row] = tick

    def set_work(self, remaining: np.ndarray, total: np.ndarray) -> None:
        """Replace the predicted seconds of all requests, in the order of iteration."""
        count = len(self._states)
        self._table[REMAINING, :count] = remaining
        self._table[TOTAL, :count] = total

    def longest_unserved(self) -> list[RequestState]:
        """The admitted requests, the one first whose last chunk is longest ago."""
        served = self._table[SERVED, : len(self._states)]
        rows = np.flatnonzero(served != WAITING)
        return [self._states[row] for row in rows[np.argsort(served[rows], kind="stable")]]

    @property
    def columns(self) -> Columns:
        """What policies see of the requests, in the order of iteration; good until the next change."""
        table = self._table[:, : len(self._states)]
        times = table[ARRIVAL], table[DUE], table[REMAINING], table[TOTAL]
        return Columns(*times, table[TOKENS], table[NUMBER], table[SERVED] != WAITING)

    def before(self, state: RequestState, policy: Policy, now: float) -> tuple[int, float]:
        """Who is served before a waiting request: how many others wait, and seconds of work of all of them."""
        count, row = len(self._states), self._row(state)
        table = self._table[:, :count]
        priorities = policy.order(self.columns, now)
        first = (priorities < priorities[row]) | ((priorities == priorities[row]) & (np.arange(count) < row))
        return int(np.sum(first & (table[SERVED] == WAITING))), float(np.sum(table[REMAINING], where=first))

    def order(self, policy: Policy, now: float) -> Order:
        """The requests by policy, least priority first."""
        columns = self.columns
        return Order(self._states, policy.order(columns, now), columns.admitted)

    def _row(self, state: RequestState) -> int:
        """Where a request stands, or would."""
        return bisect_left(self._states, _key(state), key=_key)


def _key(state: RequestState) -> tuple[float, int]:
    return state.request.arrival_s, state.number


class Order:
    """One round through the backlog, each request at most once; later ones are only sorted when they are asked for.

    Args:
        states: the requests; they may be added and removed while the round goes on.
        priorities: of each, `[requests]`.
        admitted: whether each is admitted already, `[requests]`.
    """

    def __init__(self, states: list[RequestState], priorities: np.ndarray, admitted: np.ndarray) -> None:
        self._states = list(states)
        self._priorities, self._admitted = priorities, admitted
        self._only_admitted = False

    def only_admitted(self) -> None:
        """Leave out the waiting requests from here on."""
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
        """Rows in order: the first ones, then all others."""
        priorities = self._priorities
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
