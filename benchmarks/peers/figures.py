"""What was measured of one server, as data and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Side = Literal["ours", "theirs"]
FORMAT = 1  # of the files
SECONDS, TOKENS_PER_SECOND = "s", "tokens/s"
DRIFT = 0.1  # of the machine's own speed between two servers, above which their figures cannot be compared


class NotComparableError(ValueError):
    """Results of other requests, another model or another machine."""


@dataclass(frozen=True)
class Figure:
    """A figure and all its values.

    Args:
        name: what was measured.
        unit: SECONDS or TOKENS_PER_SECOND.
        values: one for each time it was measured; their median counts.
    """

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the values, in the figure's unit."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Measured:
    """One server, measured once.

    Args:
        side: ours or theirs.
        name: of the server, with its version.
        asked: model, requests and seed; equal for servers that are compared.
        machine: processor and cores; equal too.
        origin: date, versions, threads, the machine's own speed.
        figures: in the order in which they were measured.
        others: cores that other processes and other machines used, by what was measured.
        problems: one line for each figure that failed.
    """

    side: Side
    name: str
    asked: Mapping[str, Any]
    machine: Mapping[str, Any]
    origin: Mapping[str, Any]
    figures: tuple[Figure, ...]
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def ratio(ours: Figure, theirs: Figure) -> float | None:
    """How many times as fast ours is, above 1 if it is faster: their time / ours, or our rate / theirs."""
    one, other = (theirs, ours) if ours.unit == SECONDS else (ours, theirs)
    return one.median / other.median if other.median else None


def pooled(measured: Iterable[Measured], side: Side) -> dict[str, Figure]:
    """The figures of one side by name, with the values of all its measurements."""
    found: dict[str, Figure] = {}
    for one in measured:
        for figure in one.figures if one.side == side else ():
            before = found[figure.name].values if figure.name in found else ()
            found[figure.name] = Figure(figure.name, figure.unit, before + figure.values)
    return found


def check_comparable(measured: Sequence[Measured]) -> None:
    """Refuse results of different requests, models or machines.

    Raises:
        NotComparableError: two differ; the text says in what.
    """
    first = measured[0]
    for other in measured[1:]:
        for what in ("asked", "machine"):
            ours, theirs = getattr(first, what), getattr(other, what)
            for name in sorted({*ours, *theirs}):
                if ours.get(name) != theirs.get(name):
                    raise NotComparableError(
                        f"results with different {name} cannot stand in one table: {ours.get(name)} for {first.name}, "
                        f"{theirs.get(name)} for {other.name}; measure both again"
                    )


def drift(measured: Sequence[Measured]) -> str | None:
    """A warning if the machine itself was not equally fast during all measurements; None if it was."""
    speeds = [speed for one in measured for speed in one.origin.get("matmul_gflops", ())]
    if not speeds or max(speeds) <= (1 + DRIFT) * min(speeds):
        return None
    return f"the machine's own speed varied: a matrix product ran at {min(speeds):.0f} to {max(speeds):.0f} GFLOP/s"


def write(path: Path, measured: Sequence[Measured]) -> None:
    """Write measurements as JSON."""
    stated = {"format": FORMAT, "measured": [asdict(one) for one in measured]}
    path.write_text(json.dumps(stated, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read(path: Path) -> list[Measured]:
    """Read measurements that `write` wrote.

    Raises:
        NotComparableError: the file is of another form.
    """
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        if stated["format"] != FORMAT:
            raise NotComparableError(f"{path} is of format {stated['format']!r}; this version reads {FORMAT}")
        return [_measured(one) for one in stated["measured"]]
    except NotComparableError:
        raise
    except (ValueError, LookupError, TypeError) as error:
        raise NotComparableError(f"{path} holds no results of benchmarks.peers: {error!r}") from None


def _measured(stated: dict[str, Any]) -> Measured:
    figures = tuple(Figure(one["name"], one["unit"], tuple(one["values"])) for one in stated["figures"])
    return Measured(**{**stated, "figures": figures, "problems": tuple(stated["problems"])})
