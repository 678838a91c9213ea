"""The table of a preset, for people."""

from __future__ import annotations

from medha_jax.cli.printing import print_line, print_table
from medha_jax.results import Table
from research.reproduce.report import Reproduction


def print_reproduction(found: Reproduction) -> None:
    """Print a preset's figures beside the published ones."""
    cells = tuple(
        (
            row.what,
            "-" if row.published is None else f"{_figure(row.published)} {row.unit}",
            f"{_figure(row.simulated)} {row.unit}",
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            row.kind if row.published is not None else "",
        )
        for row in found.rows
    )
    print_table(Table(f"Simulated: {found.title}", ("figure", "published", "simulated", "ratio", ""), cells))
    for line in (f"{found.setting}.", *found.notes):
        print_line(line[0].upper() + line[1:])


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
