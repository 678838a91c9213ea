"""Shared parts of the plots: colours, axes, legends, files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medha_jax.results.curves import log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: people with any colour vision can tell them apart.
BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, INK, GREY = (
    "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #222222 #8A8F98".split()
)
CYCLE = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, INK)
STYLES = ("-", "--", ":", "-.")
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E5E8",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.9,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.facecolor": "white",
    "svg.fonttype": "none",  # text stays text: small, searchable, readable aloud
}
PNG_DPI = 160


@dataclass(frozen=True)
class Plot:
    """A drawn plot.

    Args:
        name: of the file, without suffix.
        title: in a few words.
        about: description, also for readers who cannot see the plot.
        svg: the picture as SVG.
        png: the picture as PNG.
        wide: it needs the whole width of a page.
    """

    name: str
    title: str
    about: str
    svg: str
    png: bytes
    wide: bool = False


def figure_of(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; an SVG keeps its text as text, which is a third of the size, and no date."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "medha-jax"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def line_style(number: int) -> tuple[str, str]:
    """Colour and style of line `number`; 28 lines differ."""
    return CYCLE[number % len(CYCLE)], STYLES[number // len(CYCLE) % len(STYLES)]


def legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    """Add one legend above the figure, in as few rows as fit."""
    widths = [0.6 + 0.08 * len(label) for label in handles]  # inches, about
    for rows in range(1, len(widths) + 1):
        columns = [widths[i : i + rows] for i in range(0, len(widths), rows)]  # matplotlib fills by columns
        across = len(columns)
        if sum(map(max, columns)) <= figure.get_figwidth() - 0.3:
            break
    figure.legend(handles.values(), handles, loc="outside upper left", alignment="left", ncols=across, handlelength=1.4)


def labelled(axes: Iterable[Axes]) -> dict[str, Any]:
    """The drawn artists by label; each label once."""
    found = [ax.get_legend_handles_labels() for ax in axes]
    return {label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)}


def percent_format() -> Any:
    """A tick formatter that shows shares as percentages."""
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0)


def seconds_axis(ax: Axes, values: np.ndarray, margin: float = 1.15) -> None:
    """Make the x axis logarithmic, from the values with a margin, at least a factor of four wide, in whole units."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    low, high = float(values.min()), float(values.max())
    wider = max(margin, (4 * low / high) ** 0.5)
    low, high = low / wider, high * wider
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _power(value: float) -> str:
    """A round number of seconds in a unit that keeps it short."""
    for limit, factor, unit in ((0.9e-3, 1e6, "µs"), (0.9, 1e3, "ms")):
        if value < limit:
            return f"{value * factor:,.6g} {unit}"
    return f"{value:,.6g} s"


def finished(figure: Figure, name: str, title: str, about: str, wide: bool = False) -> Plot:
    """Render a figure in both formats."""
    from matplotlib.font_manager import FontProperties

    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    # Only the PNG gets a title: a page has its own. A figure's title would overlap a legend outside the axes.
    if figure.legends:
        figure.legends[0].set_title(title, FontProperties(weight="bold", size=13))
    else:
        figure.suptitle(title, x=0.01, ha="left", weight="bold", size=13)
    figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None, "Title": title})
    return Plot(name, title, about, svg.getvalue(), png.getvalue(), wide)
