"""What the scheduler asks of a policy, and what a policy sees of the requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

LEAST_WORK_S = 1e-6  # of a request, so that a time model that knows nothing divides by no zero
NO_REQUESTS = np.zeros(0)


@dataclass(frozen=True)
class Columns:
    """What policies see of requests; float64 arrays `[requests]`. All times are seconds of one clock.

    Args:
        arrival: when each came.
        deadline: by when its first token is due.
        remaining: predicted seconds of prompt work that are left, alone on the machine.
        total: predicted seconds of all its prompt work.
        tokens: whose KV is kept for it: of its prompt and its output.
        number: names it.
        admitted: whether it has its pages; booleans.
    """

    arrival: np.ndarray
    deadline: np.ndarray
    remaining: np.ndarray
    total: np.ndarray
    tokens: np.ndarray
    number: np.ndarray
    admitted: np.ndarray


class Policy(Protocol):
    """Decides who runs next; owner of what it has to remember for that."""

    @property
    def bounds_waits(self) -> bool:
        """Whether it bounds every wait by itself.

        Then it alone decides the order: there are no turns by age, a preempted request does not go first, and a long
        prompt leaves no part of a tick to those behind it.
        """

    def order(self, requests: Columns, now: float) -> np.ndarray:
        """Priorities `[requests]` of the prompts that have work left.

        The least goes first, ties go by arrival, then by number; who has an infinite one is not served now.
        """

    def urgency(self, requests: Columns, now: float) -> np.ndarray:
        """Priorities `[requests]` of admitted requests whose work would all be done again, beside those of `order`."""

    def planned(self, number: int, seconds: float) -> None:
        """A chunk was planned, of `seconds` predicted seconds of work."""

    def over_quota(self, requests: Columns) -> np.ndarray:
        """Numbers of the prompts that hold pages and should not."""


PriorityRule = Callable[[Columns, float], np.ndarray]


@dataclass(frozen=True)
class Stateless:
    """A policy that is a formula and remembers nothing.

    Args:
        rule: from columns and the time to priorities.
    """

    rule: PriorityRule
    bounds_waits: bool = False

    def order(self, requests: Columns, now: float) -> np.ndarray:
        """By the formula."""
        return self.rule(requests, now)

    def urgency(self, requests: Columns, now: float) -> np.ndarray:
        """By the formula."""
        return self.rule(requests, now)

    def planned(self, number: int, seconds: float) -> None:
        """Nothing depends on it."""

    def over_quota(self, requests: Columns) -> np.ndarray:
        """None."""
        return NO_REQUESTS
