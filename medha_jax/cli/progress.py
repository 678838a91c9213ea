"""How far a prefill is, on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# Seconds. Shorter prefills are over before a bar can be read; a log needs fewer lines than a terminal.
BAR_AFTER = 1.0
LINES_AFTER, LINES_EVERY = 10.0, 5.0


def duration(seconds: float) -> str:
    """Seconds in words: `4 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


class PrefillEstimate:
    """Predicts the rest of a prefill from the chunks computed so far, by least squares.

    Computing positions [s, e) takes `a (e - s) + b (e² - s²) / 2`: a cost per token, and one per token and
    position before it (attention). Plain tokens/s would promise far too little time for a long prompt.
    Owns the sums of the fit.
    """

    def __init__(self) -> None:
        self._done = 0
        self._xx = self._xy = self._yy = self._xt = self._yt = self._x = self._t = 0.0

    def add(self, done: int, seconds: float) -> None:
        """Note that tokens up to `done` are computed, the new ones in `seconds`."""
        x, y = float(done - self._done), (done**2 - self._done**2) / 2
        self._done = done
        self._xx, self._xy, self._yy = self._xx + x * x, self._xy + x * y, self._yy + y * y
        self._xt, self._yt = self._xt + x * seconds, self._yt + y * seconds
        self._x, self._t = self._x + x, self._t + seconds

    def seconds_left(self, total: int) -> float:
        """Seconds until `total` tokens are computed; 0 before the first chunk."""
        if not self._x:
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
        return self._t / self._x * x


class PrefillProgress:
    """Shows one prefill; a context manager that leaves nothing on the terminal. Owns the bar."""

    def __init__(self, total: int, clock: Callable[[], float], *, terminal: bool | None = None) -> None:
        """Start at 0 of `total` tokens.

        Args:
            total: prompt length in tokens.
            clock: seconds, monotonic.
            terminal: whether stderr is one; None asks it.
        """
        self._total = total
        self._clock = clock
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._start = self._last = clock()
        self._next_line = LINES_AFTER
        self._estimate = PrefillEstimate()
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> PrefillProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, done: int) -> None:
        """Note that `done` tokens of the prompt are computed."""
        now = self._clock()
        self._estimate.add(done, now - self._last)
        self._last, elapsed = now, now - self._start
        left = self._estimate.seconds_left(self._total)
        rate = f"{done / elapsed if elapsed > 0 else 0:,.0f} tokens/s"
        if self._terminal:
            self._draw(done, elapsed, rate, left)
        elif elapsed >= self._next_line and done < self._total:
            self._next_line = elapsed + LINES_EVERY
            share = f"{done:,} of {self._total:,} tokens ({100 * done / self._total:.0f} %)"
            print(f"prefill: {share}, {rate}, {duration(left)} left", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away; more updates are not expected."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def _draw(self, done: int, elapsed: float, rate: str, left: float) -> None:
        if self._bar is None:
            if done >= self._total or elapsed + left < BAR_AFTER:
                return
            self._bar = self._open_bar()
        bar, task = self._bar
        bar.update(task, completed=done, rate=rate, left=f"{duration(left)} left")

    def _open_bar(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[left]}")
        bar = Progress(
            TextColumn("prefill"), BarColumn(), MofNCompleteColumn(), *columns,
            console=Console(stderr=True, force_terminal=True), transient=True, redirect_stdout=False,
        )  # fmt: skip
        task = bar.add_task("prefill", total=self._total, rate="", left="")
        bar.start()
        return bar, task


class SimulationProgress:
    """Shows how far a simulation is: a bar on a terminal, a line every few seconds elsewhere. Owns the bar.

    Args:
        name: what is simulated.
        total: requests that will come.
        clock: seconds, monotonic.
        terminal: whether stderr is one; None asks it.
    """

    def __init__(self, name: str, total: int, clock: Callable[[], float], *, terminal: bool | None = None) -> None:
        self._name, self._total, self._clock = name, total, clock
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._next = clock() + (BAR_AFTER if self._terminal else LINES_AFTER)
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> SimulationProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def update(self, seconds: float, finished: int) -> None:
        """Note that so many seconds are simulated and so many requests finished."""
        now = self._clock()
        if now < self._next:
            return
        if self._terminal:
            self._next = now + 0.1
            self._draw(seconds, finished)
        else:
            self._next = now + LINES_EVERY
            share = f"{finished:,} of {self._total:,} requests done"
            print(f"{self._name}: {duration(seconds)} simulated, {share}", file=sys.stderr, flush=True)

    def _draw(self, seconds: float, finished: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        if self._bar is None:
            bar = Progress(
                TextColumn(self._name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[simulated]}"),
                console=Console(stderr=True, force_terminal=True), transient=True, redirect_stdout=False,
            )  # fmt: skip
            self._bar = bar, bar.add_task(self._name, total=self._total, simulated="")
            bar.start()
        bar, task = self._bar
        bar.update(task, completed=finished, simulated=f"{duration(seconds)} simulated")
