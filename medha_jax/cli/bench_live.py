"""Progress of a benchmark on stderr: one changing line on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from medha_jax.cli.progress import LINES_AFTER, LINES_EVERY, duration

if TYPE_CHECKING:
    from rich.live import Live

    from medha_jax.bench.load_generator import Tally


class LiveDisplay:
    """Shows the current run; owns its line. `terminal` None asks stderr.

    It draws in the thread of the event loop, in about a millisecond, so requests hardly wait for it.
    """

    def __init__(self, *, terminal: bool | None = None) -> None:
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._live: Live | None = None
        self._next_line = LINES_AFTER
        if self._terminal:
            # imported now, not while requests are due
            import rich.live
            import rich.progress_bar  # noqa: F401

    def show(self, what: str, tally: Tally, seconds: float) -> None:
        """Show the state of a run after some seconds."""
        line = f"{what}: {describe(tally)}, {duration(seconds)}"
        if self._terminal:
            self._draw(line, tally)
        elif seconds >= self._next_line:
            self._next_line = seconds + max(LINES_EVERY, seconds / 4)  # a long run needs few lines
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the line."""
        self._next_line = LINES_AFTER
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, line: str, tally: Tally) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        if self._live is None:
            console = Console(stderr=True, force_terminal=True)
            self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._live.start()
        bar = ProgressBar(total=max(tally.total, 1), completed=sum(tally.ended.values()), width=40)
        self._live.update(Group(Text(line, no_wrap=True, overflow="ellipsis"), bar), refresh=True)


def describe(tally: Tally) -> str:
    """`120 of 500 sent, 14 running, 104 done, 2 failed, TTFT 0.213 s`."""
    ended = tally.ended
    parts = [f"{tally.sent:,} of {tally.total:,} sent", f"{tally.running:,} running", f"{ended['ok']:,} done"]
    parts += [f"{ended[name]:,} {name}" for name in ("cancelled", "failed") if ended[name]]
    if tally.ttft_s is not None:
        parts.append(f"median TTFT {tally.ttft_s:.3g} s")
    return ", ".join(parts)
