"""Who watches the engine beside its clients: metrics and the schedule trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from medha_jax.engine import EngineEvent, ErrorLog, TickReport

T = TypeVar("T")


class Watcher(Protocol):
    """Gets each tick, and then its events, in the engine's thread."""

    def on_tick(self, report: TickReport) -> None:
        """See what a tick did."""

    def on_events(self, events: list[tuple[int, EngineEvent]]) -> None:
        """See the events of requests."""


class GuardedWatchers:
    """Passes ticks and events on. No answer depends on a watcher, so one that raises only leaves a line in the log."""

    def __init__(self, watchers: Sequence[Watcher], clock: Callable[[], float]) -> None:
        self._watchers, self._log = watchers, ErrorLog(clock, "metrics or trace")

    def __bool__(self) -> bool:
        return bool(self._watchers)

    def on_tick(self, report: TickReport) -> None:
        """Show a tick to all."""
        for watcher in self._watchers:
            self._guarded(watcher.on_tick, report)

    def on_events(self, events: list[tuple[int, EngineEvent]]) -> None:
        """Show events to all."""
        for watcher in self._watchers:
            self._guarded(watcher.on_events, events)

    def _guarded(self, show: Callable[[T], None], what: T) -> None:
        try:
            show(what)
        except Exception as error:
            self._log(error)
