"""Tables on standard output, for all commands."""

from __future__ import annotations

from collections.abc import Collection

from rich.console import Console
from rich.table import Table as Drawn

from medha_jax.results import Table

WIDTH = 140  # of output to a file or pipe


def print_table(table: Table, *, width: int = WIDTH, bold: Collection[int] = (), ends: Collection[int] = ()) -> None:
    """Print a table and its note.

    Args:
        table: rows of text, which are printed as they are.
        width: characters of output to a file or pipe.
        bold: numbers of highlighted rows.
        ends: numbers of rows with a line below.
    """
    drawn = Drawn(title=table.title, title_justify="left")
    for place, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if place < table.words else "right")
    for number, row in enumerate(table.rows):
        drawn.add_row(*row, style="bold" if number in bold else None, end_section=number in ends)
    _console(width).print(drawn)
    if table.note:
        print_line(table.note, width=width)


def print_line(line: str = "", *, wrap: bool = False, width: int = WIDTH) -> None:
    """Print a line of text; with `wrap` it is broken at the width."""
    _console(width).print(line, soft_wrap=not wrap)


def _console(width: int) -> Console:
    console = Console(highlight=False, markup=False)  # servers' own words may have brackets
    if not console.is_terminal:
        console.width = width
    return console
