"""Two servers side by side, as text that is Markdown as well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.peers.busy import Others
from benchmarks.peers.figures import SECONDS, Figure, Measured, Side, drift, pooled, ratio
from medha_jax.results.units import digits, seconds

NOTHING = "–"
SIDES: tuple[Side, ...] = ("ours", "theirs")
NOTE = (
    "Medians; in brackets least, most and how many. Ratio: how many times as fast ours is, so their time / our time, "
    "and our rate / their rate."
)


def page(measured: Sequence[Measured]) -> str:
    """Where it was measured, the table, and what was wrong."""
    lines = [*origins(measured), "", *table(measured), "", NOTE]
    troubles = warnings(measured)
    if troubles:
        lines += ["", *(f"WARNING: {line}" for line in troubles)]
    return "\n".join(lines)


def origins(measured: Sequence[Measured]) -> Iterator[str]:
    """The machine and the requests, then each measurement's server, versions, threads and date."""
    machine, asked = measured[0].machine, measured[0].asked
    yield f"- machine: {', '.join(f'{name} {_words(value)}' for name, value in machine.items())}"
    yield f"- asked: {', '.join(f'{name} {_words(value)}' for name, value in asked.items())}"
    for one in measured:
        yield f"- {one.side}, {one.name}: {', '.join(f'{name} {_words(value)}' for name, value in one.origin.items())}"


def table(measured: Sequence[Measured]) -> list[str]:
    """A row for each figure that a side has, in the order in which they were measured."""
    sides = {side: pooled(measured, side) for side in SIDES}
    names = list(dict.fromkeys(name for figures in sides.values() for name in figures))
    rows = [("", "ours", "theirs", "ratio")]
    for name in names:
        ours, theirs = (sides[side].get(name) for side in SIDES)
        times = ratio(ours, theirs) if ours and theirs else None
        rows.append((name, cell(ours), cell(theirs), NOTHING if times is None else f"{digits(times)}×"))
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    lines = [_line(row, widths) for row in rows]
    rule = "|".join("-" * (width + 1) + (":" if place else "-") for place, width in enumerate(widths))
    return [lines[0], f"|{rule}|", *lines[1:]]


def cell(figure: Figure | None) -> str:
    """The median with its unit, and the range of several values."""
    if figure is None or not figure.values:
        return NOTHING
    shown = seconds if figure.unit == SECONDS else digits
    text = shown(figure.median)
    if len(figure.values) == 1:
        return text
    return f"{text} ({shown(min(figure.values))} to {shown(max(figure.values))}, {len(figure.values)})"


def warnings(measured: Sequence[Measured]) -> list[str]:
    """What failed, when the machine was busy, and whether its own speed varied."""
    found = [f"{one.name}: {line}" for one in measured for line in one.problems]
    for one in measured:
        for what, used in one.others.items():
            trouble = Others(**used).warning
            if trouble is not None:
                found.append(f"{one.name}, {what}: {trouble}")
    varied = drift(measured)
    return found if varied is None else [*found, varied]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = row
    cells = [first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(others, widths[1:], strict=True))]
    return f"| {' | '.join(cells)} |"


def _words(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {_words(one)}" for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(_words, value))
    return f"{value:.0f}" if isinstance(value, float) else str(value)
