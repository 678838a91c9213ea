"""The picture of a preset: its lines, on linear or logarithmic axes. Needs the `plot` extra."""

from __future__ import annotations

from pathlib import Path

from medha_jax.results.drawing import figure_of, save_figure
from research.reproduce.report import Reproduction

RATIO = 60  # largest over smallest figure, above which an axis is logarithmic


def draw(path: Path, found: Reproduction) -> None:
    """Draw the lines of a preset, if it has any."""
    figure = figure_of(7, 4.2)
    axes = figure.add_subplot()
    for name, points in found.series.items():
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker="" if len(x) > 20 else ".", label=name)
    values = [list(column) for column in zip(*(point for line in found.series.values() for point in line), strict=True)]
    for scale, column in zip((axes.set_xscale, axes.set_yscale), values, strict=True):
        if min(column) > 0 and max(column) > RATIO * min(column):
            scale("log")
    axes.set_xlabel(found.axes[0])
    axes.set_ylabel(found.axes[1])
    axes.set_title(f"Simulated: {found.title}", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    save_figure(figure, path)
