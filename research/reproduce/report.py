"""Results of a reproduction: published and simulated figures side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from medha_jax.results import RequestRecord
from medha_jax.results.metrics import waited

Kind = Literal["fitted", "predicted"]


@dataclass(frozen=True)
class Comparison:
    """One figure, simulated and published; `published` is None if nothing was published.

    `kind` says whether the published figure was used for calibration. A fitted figure does not count as predicted.
    """

    what: str
    simulated: float
    published: float | None = None
    unit: str = ""
    kind: Kind = "predicted"

    @property
    def ratio(self) -> float | None:
        """Simulated over published."""
        return None if not self.published else self.simulated / self.published


@dataclass(frozen=True)
class Reproduction:
    """A preset's figures.

    Args:
        title: what is compared.
        setting: machine and workload, in words.
        notes: which figures agree, which do not, and why.
        series: lines of a picture: points (x, y) by name; empty if there is nothing to draw.
        axes: names of x and y.
    """

    name: str
    title: str
    setting: str
    rows: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()
    series: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    axes: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class PresetRun:
    """How a preset is run.

    Args:
        duration: seconds in which requests arrive, for presets with traffic; None for the preset's own.
        seed: of lengths and arrivals.
        tell: takes the simulation's name, simulated seconds, finished requests, all requests.
    """

    duration: float | None = None
    seed: int = 0
    tell: Callable[[str, float, int, int], None] = lambda name, seconds, finished, total: None


def on_time(records: Sequence[RequestRecord]) -> float | None:
    """Share of the requests with a first token by their deadline, finished or not, as in the published figures.

    Requests still within their deadline at the end of the simulation are left out.
    """
    late = [waited(one) > (one.deadline_s or 0.0) for one in records]
    known = [not is_late for one, is_late in zip(records, late, strict=True) if one.outputs or is_late]
    return sum(known) / len(known) if known else None
