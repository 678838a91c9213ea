"""The interface of a policy, and the data that a policy sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

LEAST_WORK_S = 1e-6  # of a request, so that a time model without any data causes no division by zero
NO_REQUESTS = np.zeros(0)
NONE = -1.0  # the number of no request


@dataclass(frozen=True)
class Columns:
    """Requests as policies see them: arrays `[requests]`, float64 except `admitted`. Times are seconds of one clock.

    Args:
        arrival: when the request came.
        deadline: when its first token is due.
        remaining: predicted seconds of its prompt work that is left, alone on the machine.
        total: predicted seconds of all its prompt work.
        tokens: known tokens: of the prompt, and generated before a preemption.
        number: identifies it.
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
    """Decides which prompt runs next; owns the memory that it needs for that."""

    @property
    def bounds_waits(self) -> bool:
        """Whether the policy bounds every wait itself.

        Then it alone decides the order. No turns go by age, and a preempted request does not go first. A long prompt
        leaves no part of a tick to those behind it.
        """

    @property
    def oldest(self) -> float:
        """Number of the request whose turn it is to get what a policy that bounds waits guarantees; `NONE` if none."""

    @property
    def owed(self) -> bool:
        """Whether it goes before all others now."""

    def order(self, requests: Columns, now: float) -> np.ndarray:
        """Priorities `[requests]` of the prompts that have work left.

        The least goes first; ties go by arrival, then by number. A request with an infinite one is not served now.
        """

    def urgency(self, requests: Columns, now: float) -> np.ndarray:
        """Priorities `[requests]`, comparable with those of `order`, of admitted requests as if preempted.

        All their work would have to be done again.
        """

    def planned(self, number: int, seconds: float) -> None:
        """Note a planned chunk with `seconds` predicted seconds of work."""

    def waited(self, number: int, seconds: float) -> None:
        """Note a slice of another prompt: this one goes first, and waits until that one's chunk has left the lane."""

    def over_quota(self, requests: Columns) -> np.ndarray:
        """Numbers of the prompts that must give up their pages."""


PriorityRule = Callable[[Columns, float], np.ndarray]


@dataclass(frozen=True)
class Stateless:
    """A policy without memory; `rule` computes priorities from the columns and the time."""

    rule: PriorityRule
    bounds_waits: bool = False
    oldest: float = NONE
    owed: bool = False

    def order(self, requests: Columns, now: float) -> np.ndarray:
        """The rule's priorities."""
        return self.rule(requests, now)

    def urgency(self, requests: Columns, now: float) -> np.ndarray:
        """The rule's priorities."""
        return self.rule(requests, now)

    def planned(self, number: int, seconds: float) -> None:
        """Remember nothing."""

    def waited(self, number: int, seconds: float) -> None:
        """Remember nothing."""

    def over_quota(self, requests: Columns) -> np.ndarray:
        """No prompts: there is no quota."""
        return NO_REQUESTS
