"""When a request's first token is due, and which requests have missed their deadline."""

from __future__ import annotations

import heapq
import math

from medha_jax.config import SchedulerConfig
from medha_jax.scheduler.request import ENDED, RequestState, SchedulerRequest


def due_at(request: SchedulerRequest, config: SchedulerConfig, alone: float) -> float:
    """When the first token is due, in seconds.

    The TTFT target decides, else the deadline, else the default deadline. The default follows from `alone`: the
    predicted seconds of the prompt on an otherwise idle machine.
    """
    if request.slo.ttft_s is not None:
        return request.arrival_s + request.slo.ttft_s
    if request.deadline_s is not None:
        return request.deadline_s
    return request.arrival_s + config.default_deadline_s(alone)


class Expiries:
    """Owns the times at which a request may have to be dropped."""

    def __init__(self) -> None:
        self._moments: list[tuple[float, int]] = []

    def add(self, number: int, request: SchedulerRequest, due: float) -> None:
        """Note a request, if it is dropped at its deadline."""
        if request.on_deadline == "drop":
            for moment in {due, due if request.deadline_s is None else request.deadline_s}:
                heapq.heappush(self._moments, (moment, number))

    @property
    def next(self) -> float:
        """The next of these times, in seconds; infinite if there is none."""
        return self._moments[0][0] if self._moments else math.inf

    def passed(self, now: float) -> list[int]:
        """Requests whose deadline passed since the last call, by number."""
        numbers = []
        while self._moments and self._moments[0][0] < now:
            numbers.append(heapq.heappop(self._moments)[1])
        return numbers


def expired_at(state: RequestState, now: float) -> bool:
    """Whether a request with `on_deadline="drop"` has missed the time of its first token or its deadline."""
    deadline = state.request.deadline_s
    # `due` moves when an incomplete prompt grows; the first token of a request with several outputs is its lead's
    late = state.lead is None and not state.generated and state.due < now
    return state.phase is not ENDED and (late or (deadline is not None and deadline < now))
