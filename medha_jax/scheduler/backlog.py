"""The prompts that have work left, as columns, so that ordering thousands of them takes microseconds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from medha_jax.scheduler.policy import Columns, Policy
from medha_jax.scheduler.request import RequestState

ARRIVAL, NUMBER, DUE, REMAINING, TOTAL, TOKENS, SERVED, FIELDS = range(8)
WAITING = np.inf  # `served` of requests that are not admitted
FIRST_ROWS = 128


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
