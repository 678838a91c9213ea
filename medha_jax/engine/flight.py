"""Ticks in flight: dispatched to the runtime, and not read yet."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medha_jax.engine.executor import Executor
from medha_jax.plan import TokenResult
from medha_jax.scheduler.plan_builder import Planned
from medha_jax.scheduler.time_model import TimeModel

NOTHING = Planned()  # stands for a tick that no scheduler planned


@dataclass(frozen=True, slots=True)
class DispatchedTick:
    """A dispatched tick.

    Args:
        handle: for `Executor.collect`.
        stages: the plan of each stage, from the first stage on.
        leaving: the plan of the last stage; its results come with this tick.
        submitted: when it was dispatched, in seconds.
        first: requests whose first chunk entered.
    """

    handle: Any
    stages: tuple[Planned, ...]
    leaving: Planned
    submitted: float
    first: frozenset[int]


@dataclass(frozen=True, slots=True)
class TickTimes:
    """When a tick ran, in seconds; `timed` is false if an earlier tick may still have been running at its start."""

    started: float
    ended: float
    timed: bool


class Flight:
    """Owns the unread ticks and the plans in the pipeline; `model` observes the seconds of each tick."""

    def __init__(self, executor: Executor, model: TimeModel, clock: Callable[[], float]) -> None:
        self._executor, self._model, self._clock = executor, model, clock
        self._stages = executor.config.mesh.spp
        self._ended, self._waited = -math.inf, True
        self.clear()

    def __len__(self) -> int:
        return len(self._ticks)

    @property
    def entered(self) -> bool:
        """Whether a chunk is in the pipeline."""
        return any(planned.states for planned in self._entered)

    @property
    def plans(self) -> tuple[Planned, ...]:
        """Every plan with unread results."""
        return (*(tick.leaving for tick in self._ticks), *self._entered)

    def clear(self) -> None:
        """Forget all ticks and plans."""
        self._entered: deque[Planned] = deque([NOTHING] * (self._stages - 1))
        self._ticks: deque[DispatchedTick] = deque()

    def submit(self, planned: Planned, first: frozenset[int]) -> None:
        """Dispatch the tick in which a plan enters; `first` are its requests with their first chunk."""
        submitted = self._clock()
        handle = self._executor.submit(planned.plan)
        stages = (planned, *reversed(self._entered))
        self._entered.append(planned)
        self._ticks.append(DispatchedTick(handle, stages, self._entered.popleft(), submitted, first))

    def take(self) -> DispatchedTick:
        """Remove the oldest tick and return it."""
        return self._ticks.popleft()

    def read(self, tick: DispatchedTick) -> tuple[list[TokenResult], TickTimes]:
        """Wait for a tick; returns one result per chunk of its leaving plan, and when it ran."""
        results = self._executor.collect(tick.handle)
        now = self._clock()
        started, waits = max(tick.submitted, self._ended), bool(tick.leaving.states)
        timed = self._waited and waits
        if timed and tick.stages[0] is not NOTHING:
            self._model.observe(tick.stages[0].work, now - started)
        self._ended, self._waited = now, waits
        return results, TickTimes(started, now, timed)
