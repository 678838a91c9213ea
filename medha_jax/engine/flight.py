"""Ticks and slices in flight: dispatched to the runtime, and not read yet."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from medha_jax.engine.executor import Executor
from medha_jax.plan import ScoreQuery, TokenResult
from medha_jax.scheduler.planned import Planned
from medha_jax.scheduler.request import ENDED, RequestState
from medha_jax.scheduler.time_model import TimeModel

NOTHING = Planned()  # stands for a tick that no scheduler planned


@dataclass(frozen=True, slots=True)
class DispatchedTick:
    """A dispatched tick or slice.

    Args:
        handle: for `Executor.collect`.
        planned: the plan that was submitted with it.
        stages: the plan of each stage, from the first stage on; only `planned` for a slice, whose step has the chunks.
        leaving: the plan of the last stage; its results come with this tick. For a slice, the chunks that are done.
        submitted: when it was dispatched, in seconds.
        first: requests whose first chunk entered.
        scored: whether prompt tokens of `leaving` are scored, which takes time that nothing predicts.
        failed: why they could not be asked for; the results are then lost.
    """

    handle: Any
    planned: Planned
    stages: tuple[Planned, ...]
    leaving: Planned
    submitted: float
    first: frozenset[int]
    scored: bool = False
    failed: Exception | None = None

    @property
    def states(self) -> tuple[RequestState, ...]:
        """The requests that an error of it hits: those of the leaving plan, or of every chunk of a slice."""
        if self.planned.step is None:
            return self.leaving.states
        return tuple(state for stage in self.planned.step.states for state in stage)


@dataclass(frozen=True, slots=True)
class TickTimes:
    """When a tick ran, in seconds; `timed` is false if an earlier tick may still have been running at its start."""

    started: float
    ended: float
    timed: bool


class Flight:
    """Owns the unread ticks and slices, and the plans in the pipeline; `model` observes the seconds of each.

    Attributes:
        predicted_s: seconds of all unread ticks and slices together, as they were predicted. Any thread may read it.
    """

    def __init__(self, executor: Executor, model: TimeModel, clock: Callable[[], float]) -> None:
        self._executor, self._model, self._clock = executor, model, clock
        self._stages, self._scores = executor.config.mesh.spp, executor.config.prompt_logprobs
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
        self.predicted_s = 0.0

    def submit(self, planned: Planned, first: frozenset[int]) -> None:
        """Dispatch a slice, or the tick in which a plan enters; `first` are its requests with their first chunk."""
        submitted = self._clock()
        self.predicted_s = planned.seconds + sum(tick.planned.seconds for tick in self._ticks)
        if (step := planned.step) is not None:
            handle = self._executor.submit_slice(step.slice)
            leaving = Planned(plan=step.slice.stages[-1], states=step.leaving) if step.leaving else NOTHING
            self._dispatched(DispatchedTick(handle, planned, (planned,), leaving, submitted, first))
            return
        handle = self._executor.submit(planned.plan)
        stages = (planned, *reversed(self._entered))
        self._entered.append(planned)
        self._dispatched(DispatchedTick(handle, planned, stages, self._entered.popleft(), submitted, first))

    def _dispatched(self, tick: DispatchedTick) -> None:
        """Keep a tick, and ask about the prompt tokens of what leaves with it."""
        self._ticks.append(tick)
        if self._scores and (queries := score_queries(tick.leaving)):
            try:
                handle = self._executor.score(tick.handle, queries)
                self._ticks[-1] = replace(tick, handle=handle, scored=True)
            except Exception as error:  # of the requests that leave, not of those that have just entered
                self._ticks[-1] = replace(tick, failed=error)

    def take(self) -> DispatchedTick:
        """Remove the oldest tick and return it."""
        return self._ticks.popleft()

    def read(self, tick: DispatchedTick) -> tuple[list[TokenResult], TickTimes]:
        """Wait for a tick or slice; returns one result per chunk of its leaving plan, and when it ran."""
        results = self._executor.collect(tick.handle)
        if tick.failed is not None:
            raise tick.failed
        now = self._clock()
        planned = tick.planned
        started, waits = max(tick.submitted, self._ended), bool(tick.leaving.states) or planned.step is not None
        timed = self._waited and waits
        if timed and planned is not NOTHING and not tick.scored:
            times = self._model if planned.step is None else self._model.slices
            times.observe(planned.work, now - started)
        self._ended, self._waited = now, waits
        return results, TickTimes(started, now, timed)


def score_queries(leaving: Planned) -> dict[int, ScoreQuery]:
    """What to ask about a plan's chunks, by place: the prompt tokens that follow their rows, where somebody wants them.

    A chunk of a prompt that is not complete ends before the last token that has come, so its last row has one, too.
    """
    queries = {}
    for place, (state, chunk) in enumerate(zip(leaving.states, leaving.plan.chunks, strict=True)):
        if state.scores is not None and state.phase is not ENDED:
            following = state.request.prompt[chunk.start + 1 : chunk.end + 1]
            if len(following):
                queries[place] = ScoreQuery(following, state.scores)
    return queries
