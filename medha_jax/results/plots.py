"""Plots of runs. They need matplotlib (extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medha_jax.results.curves import class_names, classes, cumulative, goodput_lines, medians, share_within
from medha_jax.results.drawing import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    INK,
    STYLE,
    VERMILION,
    Plot,
    figure_of,
    finished,
    labelled,
    legend,
    line_style,
    percent_format,
    seconds_axis,
)
from medha_jax.results.metrics import tpot, ttft
from medha_jax.results.records import Status
from medha_jax.results.run import Run, compare_convoys
from medha_jax.results.timeline import Bar, bars, marks
from medha_jax.results.units import digits, seconds

KINDS = {"short": BLUE, "long": VERMILION, "probe": GREEN}
MOST_TIMELINES, MOST_ACROSS = 6, 3
FEWEST = 3  # finished requests that a panel needs
MOST_WORDS = 8  # most medians in a sentence; more stand in a table
MOST_VECTOR_BARS = 1500  # more bars are drawn as pixels, also in an SVG
MARKERS: tuple[tuple[Status, str], ...] = (("failed", "x"), ("cancelled", "d"))
FLOOR_S = 1e-4  # shorter times are drawn here on a logarithmic axis


def draw(runs: Sequence[Run]) -> list[Plot]:
    """Draw every plot for which the runs have data.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib as mpl

    with mpl.rc_context({**mpl.rcParamsDefault, **STYLE, "svg.hashsalt": "medha-jax", "backend": "agg"}):
        plots = [_convoy(runs), _goodput(runs), _cdf(runs, "ttft"), _cdf(runs, "tpot")]
        # all timelines share one axis, so that they can be compared
        end = max((record.ended for run in runs for record in run.repeats[0].records), default=0.0)
        plots += [_timeline(run, number, len(runs), end) for number, run in enumerate(runs[:MOST_TIMELINES])]
    return [plot for plot in plots if plot is not None]


def _cdf(runs: Sequence[Run], metric: str) -> Plot | None:
    """Distribution of a metric: one line per class for one run; for several, one panel per class, one line per run."""
    of = {"ttft": ttft, "tpot": tpot}[metric]
    words = {"ttft": "Time to first token (TTFT)", "tpot": "Time per output token (TPOT)"}[metric]
    fewest = 1 if len(runs) == 1 else FEWEST
    names = [name for name in class_names(runs) if any(len(classes(run, name, of)) >= fewest for run in runs)]
    if not names:
        return None
    panels = names if len(runs) > 1 else [""]
    across = min(MOST_ACROSS, len(panels))
    figure = figure_of(6.4 if across == 1 else 3.6 * across + 0.6, 0.4 + 3.5 * -(-len(panels) // across))
    axes = list(figure.subplots(-(-len(panels) // across), across, squeeze=False, sharey=True).flat)
    for panel, ax in zip(panels, axes, strict=False):
        lines = [(run.name, run, panel) for run in runs] if panel else [(name, runs[0], name) for name in names]
        drawn = []
        for number, (label, run, name) in enumerate(lines):
            values = classes(run, name, of)
            if len(values):
                drawn.append(values.clip(FLOOR_S))
                colour, style = line_style(number) if panel else (KINDS.get(name, line_style(number)[0]), "-")
                label = label if panel else f"{name} ({len(values):,})"
                ax.plot(*cumulative(drawn[-1]), style, color=colour, label=label, drawstyle="steps-post")
        seconds_axis(ax, np.concatenate(drawn))
        counts = sorted({len(values) for values in drawn})
        ax.set(ylim=(0, 1.01), xlabel=f"{metric.upper()} (log scale)")
        ax.yaxis.set_major_formatter(percent_format())
        if panel:
            ax.set_title(f"{panel} ({' - '.join(f'{n:,}' for n in dict.fromkeys((counts[0], counts[-1])))})")
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax in axes[::across]:
        ax.set_ylabel("requests within that time")
    legend(figure, labelled(axes))
    seen = [f"{run.name}, {name}: {median}" for run in runs for name, median in medians(run, names, of)]
    known = f" Medians: {'; '.join(seen)}." if len(seen) <= MOST_WORDS else " The medians are in the tables."
    about = f"Share of the finished requests of each class with a {metric.upper()} up to a time; (n) requests.{known}"
    return finished(figure, f"cdf_{metric}", words, about, wide=len(panels) > 1)


def _convoy(runs: Sequence[Run]) -> Plot | None:
    """TTFT of every short request, one row per run."""
    if not compare_convoys(runs):
        return None
    found = [classes(run, "short", ttft).clip(FLOOR_S) for run in runs]
    if not all(len(values) for values in found):
        return None
    figure = figure_of(9.6, 1.3 + 0.62 * len(runs))
    ax = figure.subplots()
    middles = [float(np.median(values)) for values in found]
    for row, (values, middle) in enumerate(zip(found, middles, strict=True)):
        colour, _ = line_style(row)
        # multiples of the golden ratio spread the points, so that few hide others
        apart = row + 0.3 * ((np.arange(len(values)) * 0.618034) % 1 - 0.5)
        ax.scatter(values, apart, s=34, color=colour, alpha=0.5, linewidths=0, zorder=3)
        ax.plot([middle, middle], [row - 0.3, row + 0.3], color=colour, linewidth=3, solid_capstyle="butt", zorder=4)
        ratio = "" if row == 0 else f"  ({digits(middles[0] / middle)}x)"
        ax.annotate(seconds(middle) + ratio, (middle, row - 0.34), ha="center", va="bottom", color=INK, fontsize=9.5)
    seconds_axis(ax, np.concatenate(found), margin=1.7)
    bests = [run.long_over_best for run in runs]
    names = [
        run.name if best is None else f"{run.name}\nlong: {best:.2f} x best"
        for run, best in zip(runs, bests, strict=True)
    ]
    ax.set(yticks=range(len(runs)), yticklabels=names, ylim=(len(runs) - 0.4, -0.75))
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("TTFT of each short request (log scale); the bar is the median")
    title = "Short requests beside long ones"
    seen = ", ".join(f"{run.name} {seconds(middle)}" for run, middle in zip(runs, middles, strict=True))
    return finished(figure, "convoy", title, f"Median TTFT of the short requests of each run: {seen}.", wide=True)


def _goodput(runs: Sequence[Run]) -> Plot | None:
    """Goodput over the offered rate, one line per series."""
    lines, key = goodput_lines(runs)
    if not lines:
        return None
    figure = figure_of(9.6, 3.9)
    ax = figure.subplots()
    most = max(rate for points in lines.values() for rate, _ in points)
    ax.plot([0, most], [0, most], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="every request", zorder=1)
    for number, (series, points) in enumerate(lines.items()):
        rates, values = zip(*points, strict=True)
        errors = [value.half or 0.0 for value in values]
        means = [value.mean for value in values]
        colour, style = line_style(number)
        ax.errorbar(rates, means, errors, color=colour, linestyle=style, marker="o", capsize=3, label=series)
    word = "goodput" if key == "request_goodput" else "throughput"
    ax.set(xlim=(0, None), ylim=(0, None), xlabel="offered, requests/s", ylabel=f"{word}, requests/s")
    legend(figure, labelled([ax]))
    seen = "; ".join(
        f"{series}: " + ", ".join(f"{digits(value.mean)} at {digits(rate)}" for rate, value in points)
        for series, points in lines.items()
    )
    return finished(
        figure, "goodput", f"{word.capitalize()} against offered rate", f"Requests a second. {seen}.", wide=True
    )


def _timeline(run: Run, number: int, of: int, end: float) -> Plot | None:
    """One row per request of the first repeat: waiting, prefill, decode."""
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    records = run.repeats[0].records
    if not records:
        return None
    drawn = bars(records)
    figure = figure_of(9.6, min(6.0, max(2.4, 1.5 + 0.16 * len(records))))
    ax = figure.subplots()
    kinds = [kind for kind in run.kinds() if any(bar.kind == kind for bar in drawn)]
    colours = {kind: KINDS.get(kind, CYCLE[(3 + place) % len(CYCLE)]) for place, kind in enumerate(kinds)}
    faces = [_lighter(colours[bar.kind], bar.phase) for bar in drawn]
    half = max(0.4, len(records) / 250)  # half a bar's height: with many requests bars overlap, but stay visible
    shapes = PolyCollection([_corners(bar, half) for bar in drawn], facecolors=faces, linewidths=0)
    shapes.set_rasterized(len(drawn) > MOST_VECTOR_BARS)
    ax.add_collection(shapes)
    handles: dict[str, Any] = {kind: Patch(color=colours[kind]) for kind in kinds}
    phases = [phase for phase in _LIGHT if any(bar.phase == phase for bar in drawn)]
    handles |= {phase: Patch(color=_lighter("#4A4F57", phase)) for phase in phases}
    for status, marker in MARKERS:
        points = marks(records, status)
        if points:
            ax.plot(*zip(*points, strict=True), marker, color=INK, markersize=5, linestyle="")
            handles[status] = Line2D([], [], marker=marker, color=INK, linestyle="", markersize=5)
    ax.set(xlim=(0, end * 1.01 or 1), ylim=(len(records) - 0.3, -0.7), xlabel="seconds since the start")
    ax.set_ylabel("requests, as they were sent")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", visible=False)
    legend(figure, handles)
    where = f" of {run.name}" if of > 1 else ""
    late = f" {share_within(records)}"
    about = f"A row for each of {len(records):,} requests: waiting, prefill, decode.{late}"
    if len(run.repeats) > 1:
        about += f" The first of {len(run.repeats)} repeats."
    return finished(figure, f"timeline_{number + 1}" if of > 1 else "timeline", f"Timeline{where}", about, wide=True)


# Share of the colour; the phases of a request go from light to dark.
_LIGHT = {"waiting": 0.22, "waiting or prefill": 0.4, "prefill": 0.55, "decode": 1.0}


def _lighter(colour: str, phase: str) -> tuple[float, float, float]:
    """A colour mixed with white."""
    red, green, blue = (1 - _LIGHT[phase] * (1 - int(colour[i : i + 2], 16) / 255) for i in (1, 3, 5))
    return red, green, blue


def _corners(bar: Bar, half: float) -> list[tuple[float, float]]:
    top, bottom = bar.row - half, bar.row + half
    return [(bar.start, top), (bar.end, top), (bar.end, bottom), (bar.start, bottom)]
