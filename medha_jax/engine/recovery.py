"""Recovery from an error: drop the plans that it hit, and begin again if the devices lost their state."""

from __future__ import annotations

from collections.abc import Callable

from medha_jax.engine.events import Failed
from medha_jax.engine.executor import Executor
from medha_jax.engine.flight import Flight
from medha_jax.scheduler.planned import Planned
from medha_jax.scheduler.scheduler import Scheduler

MOST_IN_A_ROW = 8  # errors of plans without a result in between; a ninth one would not be the last


class Recovery:
    """Drops plans. Its caller ends their requests first."""

    def __init__(self, executor: Executor, scheduler: Scheduler, flight: Flight, clock: Callable[[], float]) -> None:
        self._executor, self._scheduler, self._flight, self._clock = executor, scheduler, flight, clock
        self._renewed = False  # whether the state was renewed and nothing was computed since
        self._in_a_row = 0

    def progressed(self) -> None:
        """Note that results came: the devices' state may be renewed again after its next loss."""
        self._renewed = False
        self._in_a_row = 0

    def drop_plan(self, planned: Planned, error: Exception) -> bool:
        """Drop a plan that an error hit; returns whether the other requests can go on.

        If the error lost the devices' state, the other requests are computed again. They cannot go on if the state
        cannot be renewed, if nothing was computed since it was last renewed, or if one plan after the other fails.
        """
        self._drop(planned)
        self._in_a_row += 1
        if self._in_a_row > MOST_IN_A_ROW:
            return False
        if self._executor.usable():
            return True
        if self._renewed:
            return False
        self._renewed = True
        self._flight.clear()
        self._scheduler.lose(self._clock())
        try:
            self._executor.renew()
        except Exception as cause:
            error.__cause__ = cause
            return False
        return True

    def drop_all(self) -> None:
        """Drop every plan with unread results."""
        for planned in self._flight.plans:
            self._drop(planned)
        self._flight.clear()

    def _drop(self, planned: Planned) -> None:
        """Count the chunks of a plan as no longer in flight; of a slice, those that it would have finished.

        Its other chunks left the slice lane when their requests ended.
        """
        states, chunks, step = planned.states, planned.plan.chunks, planned.step
        if step is not None:
            states, chunks = step.leaving, step.slice.stages[-1].chunks if step.leaving else ()
        for state, chunk in zip(states, chunks, strict=True):
            self._scheduler.chunk_left(state, chunk, 0, 0.0, good=False)


def internal_error(error: Exception) -> Failed:
    """The event of an error, without the error's own text, which may name paths."""
    return Failed("internal", f"an internal error ended the request ({type(error).__name__})")
