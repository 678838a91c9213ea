"""Priority classes: an order in front of the policy's, and what those behind get in spite of it."""

from __future__ import annotations

import math

import numpy as np

from medha_jax.scheduler.policies.base import NONE, Policy
from medha_jax.scheduler.request import RequestState

ADVANCE_S = 1.0  # most debt from work done for the oldest beyond its credit, and what newcomers begin with


class PriorityClasses:
    """Puts an earlier class in front of a later one, whatever the policy says of their requests.

    A prompt is *outranked* while one of an earlier class has work left. The outranked get a share φ of the time, in
    the order in which they came. They begin with a debt of a second. While there are any, they gain φ seconds of credit
    each second, and predicted work done for the *oldest* is taken off. It goes before all classes while there is
    credit, and keeps its pages then. It stays the oldest until its prompt is done. A policy that bounds waits has such
    an oldest itself, and needs no second one.

    docs/scheduling.md#priorities states the bound.

    Args:
        share: φ, above 0 and below 1.
    """

    def __init__(self, share: float, policy: Policy) -> None:
        self._share, self._policy = share, policy
        self._used = 0
        self._oldest, self._credit = NONE, 0.0
        self._now = math.nan

    @property
    def used(self) -> bool:
        """Whether any open request has a priority other than 0."""
        return self._used > 0

    def enter(self, state: RequestState) -> None:
        """Note a new request."""
        self._used += state.request.priority != 0

    def leave(self, state: RequestState) -> None:
        """Note that a request is gone."""
        self._used -= state.request.priority != 0

    def ranks(self, priority: np.ndarray, number: np.ndarray, now: float) -> np.ndarray | None:
        """What comes before the policy's priorities, `[requests]`; None if it is the same for all.

        Call it after the policy's `order`, with the classes and numbers of the same requests, the first to come first.
        """
        if not self._used or not len(number):
            self._oldest = NONE
            return None
        ranks = priority.copy()
        if not self._policy.bounds_waits:
            self._choose_oldest(priority, number, now)
        if self._owed:
            ranks[number == self._first] = -math.inf
        return ranks

    def planned(self, number: int, seconds: float) -> None:
        """Take planned work off the credit if it was done for the oldest."""
        if number == self._oldest:
            self._credit = max(self._credit - seconds, -ADVANCE_S)

    def goes_first(self, state: RequestState) -> bool:
        """Whether a request goes before all classes now."""
        return self._owed and state.number == self._first

    def comparable(self, state: RequestState, ranks: np.ndarray) -> np.ndarray:
        """For which holders of pages, of whose `ranks` these are, the policy alone decides whether they lose them."""
        own: np.ndarray = ranks == state.request.priority
        return own | (self._policy.bounds_waits and self.goes_first(state))

    def before(self, first: RequestState, second: RequestState) -> bool:
        """Whether an overdue request goes before another one, which is next in the order."""
        if self.goes_first(second):
            return first.request.priority == second.request.priority
        return first.request.priority <= second.request.priority

    def rank(self, state: RequestState) -> float:
        """A key for who keeps pages: the class, and before all classes the oldest prompt while it goes first."""
        kept = state.number == self._first and state.queued and (self._policy.bounds_waits or self._owed)
        return -math.inf if kept else state.request.priority

    @property
    def _first(self) -> float:
        return self._policy.oldest if self._policy.bounds_waits else self._oldest

    @property
    def _owed(self) -> bool:
        return self._policy.owed if self._policy.bounds_waits else self._oldest != NONE and self._credit > 0

    def _choose_oldest(self, priority: np.ndarray, number: np.ndarray, now: float) -> None:
        if self._oldest in number:
            self._credit += self._share * (now - self._now)
        else:
            outranked, before = number[priority > priority.min()], self._oldest
            self._oldest = float(outranked[0]) if len(outranked) else NONE
            if before == NONE:
                self._credit = -ADVANCE_S
        self._now = now
