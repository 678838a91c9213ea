"""The plot of a plan: every layout's TTFT and goodput, with the Pareto front joined. Needs the `plot` extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from medha_jax.simulate.estimate import Estimate

SUFFIXES = (".svg", ".png", ".pdf")


def check_plot(path: Path) -> None:
    """Check that a plot can be drawn to a file, before the work begins.

    Raises:
        typer.BadParameter: its suffix is not known, or matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise typer.BadParameter(f"{path} ends in {path.suffix or 'nothing'}; allowed are {', '.join(SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise typer.BadParameter("plots need matplotlib: pip install 'medha-jax[plot]'") from None


def draw(path: Path, found: Sequence[Estimate], chosen: Estimate, title: str) -> None:
    """Draw TTFT against goodput; a point's colour is its TPOT, and points of the front have names."""
    from medha_jax.results.drawing import figure_of, save_figure

    figure = figure_of(9, 5.5)
    axes = figure.add_subplot()
    points = axes.scatter(
        [one.ttft_s for one in found],
        [one.goodput_per_s for one in found],
        c=[1000 * one.tpot_s for one in found],
        s=[60 if one.front else 18 for one in found],
        cmap="viridis",
        norm="log",
    )
    figure.colorbar(points, label="TPOT alone, ms")
    for one in found:
        if one.front:
            axes.annotate(str(one.candidate), (one.ttft_s, one.goodput_per_s), fontsize=6)
    axes.scatter([chosen.ttft_s], [chosen.goodput_per_s], s=160, facecolors="none", edgecolors="red", label="chosen")
    axes.set_xscale("log")
    axes.set_xlabel("TTFT of a longest prompt alone, s")
    axes.set_ylabel("goodput, requests/s")
    axes.set_title(title)
    axes.legend()
    save_figure(figure, path)
