"""How many layouts a plan has looked at, on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from medha_jax.cli.progress import BAR_AFTER, LINES_AFTER, LINES_EVERY

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class LayoutProgress:
    """Counts layouts; a context manager that leaves nothing on the terminal. Owns the bar.

    Args:
        total: layouts.
        clock: seconds, monotonic.
        terminal: whether stderr is one; None asks it.
    """

    def __init__(self, total: int, clock: Callable[[], float], *, terminal: bool | None = None) -> None:
        self._total, self._clock, self._done = total, clock, 0
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._next = clock() + (BAR_AFTER if self._terminal else LINES_AFTER)
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> LayoutProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def advance(self) -> None:
        """One more has been looked at."""
        self._done += 1
        now = self._clock()
        if now < self._next:
            return
        if self._terminal:
            self._next = now + 0.1
            self._draw()
        else:
            self._next = now + LINES_EVERY
            print(f"plan: {self._done:,} of {self._total:,} layouts", file=sys.stderr, flush=True)

    def _draw(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bar is None:
            columns = TextColumn("layouts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            console = Console(stderr=True, force_terminal=True)
            bar = Progress(*columns, console=console, transient=True, redirect_stdout=False)
            self._bar = bar, bar.add_task("layouts", total=self._total)
            bar.start()
        bar, task = self._bar
        bar.update(task, completed=self._done)
