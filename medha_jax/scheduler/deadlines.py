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
    """Owns the times at which a request may have to be dropped. It has at most twice as many as count."""

    def __init__(self) -> None:
        self._moments: list[tuple[float, int]] = []  # a heap; some count no more, but never the first
        self._of: dict[int, set[float]] = {}  # those that count, of each request
        self._gone = 0

    def __len__(self) -> int:
        """Times that are kept."""
        return len(self._moments)

    def add(self, number: int, request: SchedulerRequest, due: float) -> None:
        """Note a request, if it is dropped at its deadline, instead of what was noted of it before."""
        if request.on_deadline == "drop":
            self.forget(number)
            self._of[number] = {due, due if request.deadline_s is None else request.deadline_s}
            for moment in self._of[number]:
                heapq.heappush(self._moments, (moment, number))

    def forget(self, number: int) -> None:
        """Nothing of a request expires any more."""
        self._gone += len(self._of.pop(number, ()))
        self._clean()

    @property
    def next(self) -> float:
        """The next of these times, in seconds; infinite if there is none."""
        return self._moments[0][0] if self._moments else math.inf

    def passed(self, now: float) -> list[int]:
        """Requests whose deadline passed since the last call, by number."""
        numbers = []
        while self._moments and self._moments[0][0] < now:
            moment, number = heapq.heappop(self._moments)
            self._of[number].remove(moment)
            if not self._of[number]:
                del self._of[number]
            self._clean()
            numbers.append(number)
        return numbers

    def _clean(self) -> None:
        """Drop times that do not count: all if they are the most, and those at the front."""
        if 2 * self._gone > len(self._moments):
            self._moments = [(moment, number) for number, own in self._of.items() for moment in own]
            heapq.heapify(self._moments)
            self._gone = 0
        while self._moments and self._moments[0][0] not in self._of.get(self._moments[0][1], ()):
            heapq.heappop(self._moments)
            self._gone -= 1


def expired_at(state: RequestState, now: float) -> bool:
    """Whether a request with `on_deadline="drop"` has missed the time of its first token or its deadline."""
    deadline = state.request.deadline_s
    # `due` moves when an incomplete prompt grows; the first token of a request with several outputs is its lead's
    late = state.lead is None and not state.generated and state.due < now
    return state.phase is not ENDED and (late or (deadline is not None and deadline < now))
