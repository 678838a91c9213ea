"""The table of a preset, for people."""

from __future__ import annotations

from rich.table import Table

from medha_jax.cli.simulate_tables import wide_console
from research.reproduce.report import Reproduction


def print_reproduction(found: Reproduction) -> None:
    """Print a preset's figures beside the published ones."""
    table = Table(title=f"Simulated: {found.title}", title_justify="left")
    table.add_column("figure")
    for name in ("published", "simulated", "ratio"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in found.rows:
        table.add_row(
            row.what,
            "-" if row.published is None else f"{_figure(row.published)} {row.unit}",
            f"{_figure(row.simulated)} {row.unit}",
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            row.kind if row.published is not None else "",
        )
    console = wide_console()
    console.print(table)
    for line in (f"{found.setting}.", *found.notes):
        console.print(line[0].upper() + line[1:], soft_wrap=True)


def _figure(value: float) -> str:
    """Four digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
