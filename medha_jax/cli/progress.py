"""Progress of a command on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

# Seconds. Shorter prefills end before a bar can be read; a log needs fewer lines than a terminal.
BAR_AFTER = 1.0
LINES_AFTER, LINES_EVERY = 10.0, 5.0
DRAWN_EVERY = 0.1


def duration(seconds: float) -> str:
    """Seconds in words: `4 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


class PrefillEstimate:
    """Predicts the rest of a prefill from the chunks so far, by least squares. Owns the sums of the fit.

    Computing positions [s, e) takes `a (e - s) + b (e² - s²) / 2`: a cost per token, and one per token and position
    before it (attention). Plain tokens/s would promise far too little time for a long prompt.
    """

    def __init__(self) -> None:
        self._done, self._seconds = 0, 0.0
        self._xx = self._xy = self._yy = self._xt = self._yt = 0.0

    def add(self, done: int, seconds: float) -> None:
        """Note that tokens up to `done` are computed, the new ones in `seconds`."""
        x, y = float(done - self._done), (done**2 - self._done**2) / 2
        self._done, self._seconds = done, self._seconds + seconds
        self._xx, self._xy, self._yy = self._xx + x * x, self._xy + x * y, self._yy + y * y
        self._xt, self._yt = self._xt + x * seconds, self._yt + y * seconds

    def seconds_left(self, total: int) -> float:
        """Seconds until `total` tokens are computed; 0 before the first chunk."""
        if not self._done:
            return 0.0
        x, y = total - self._done, (total**2 - self._done**2) / 2
        determinant = self._xx * self._yy - self._xy**2
        if determinant > 1e-9 * self._xx * self._yy:
            a = (self._xt * self._yy - self._yt * self._xy) / determinant
            b = (self._yt * self._xx - self._xt * self._xy) / determinant
            if a >= 0 and b >= 0:
                return a * x + b * y
            if a < 0:
                return self._yt / self._yy * y
        return self._seconds / self._done * x


class Progress:
    """Progress on stderr: a bar on a terminal, a line every few seconds elsewhere. Owns the bar.

    A context manager that leaves nothing on the terminal. `total` is the number of parts. `terminal` None asks stderr.
    """

    def __init__(self, name: str, total: int, clock: Callable[[], float], *, terminal: bool | None = None) -> None:
        self.total, self._name, self._clock = total, name, clock
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self._start = clock()
        self._next = self._start + (BAR_AFTER if self.terminal else LINES_AFTER)
        self._bar: tuple[RichProgress, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def shown(self) -> bool:
        """Whether the bar is on the terminal."""
        return self._bar is not None

    def show(self, done: int, line: str, beside: str | None = None, *, soon: bool = False) -> None:
        """Show that `done` parts are done.

        Args:
            line: for a log.
            beside: for a bar; None for the time left at the present speed.
            soon: show the bar at once, because the work is known to be long.
        """
        now = self._clock()
        if now < self._next and not (soon and self.terminal):
            return
        if not self.terminal:
            self._next = now + LINES_EVERY
            print(line, file=sys.stderr, flush=True)
            return
        self._next = now + DRAWN_EVERY
        if beside is None:
            beside = f"{duration((now - self._start) / max(done, 1) * (self.total - done))} left"
        bar, task = self._bar = self._bar or self._opened()
        bar.update(task, completed=done, beside=beside)

    def close(self) -> None:
        """Remove the bar; the work has ended."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def _opened(self) -> tuple[RichProgress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        columns = TextColumn(self._name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[beside]}")
        console = Console(stderr=True, force_terminal=True)
        bar = RichProgress(*columns, console=console, transient=True, redirect_stdout=False)
        task = bar.add_task(self._name, total=self.total, beside="")
        bar.start()
        return bar, task


class PrefillProgress(Progress):
    """Progress of one prefill; `total` is the prompt's length in tokens."""

    def __init__(self, total: int, clock: Callable[[], float], *, terminal: bool | None = None) -> None:
        super().__init__("prefill", total, clock, terminal=terminal)
        self._last = self._start
        self._estimate = PrefillEstimate()

    def update(self, done: int) -> None:
        """Note that `done` tokens of the prompt are computed."""
        now = self._clock()
        self._estimate.add(done, now - self._last)
        self._last, elapsed = now, now - self._start
        left = self._estimate.seconds_left(self.total)
        if done >= self.total and not self.shown:
            return
        rate = f"{done / elapsed if elapsed > 0 else 0:,.0f} tokens/s"
        share = f"{done:,} of {self.total:,} tokens ({100 * done / self.total:.0f} %)"
        line = f"prefill: {share}, {rate}, {duration(left)} left"
        self.show(done, line, f"{rate} {duration(left)} left", soon=self.shown or elapsed + left >= BAR_AFTER)


class SimulationProgress(Progress):
    """Progress of a simulation; `total` is the number of requests."""

    def update(self, seconds: float, finished: int) -> None:
        """Note how many seconds are simulated, and how many requests have finished."""
        simulated = f"{duration(seconds)} simulated"
        self.show(finished, f"{self._name}: {simulated}, {finished:,} of {self.total:,} requests done", simulated)
