"""Seconds of a tick as a linear function of its work, with fixed coefficients or learnt from measured ticks."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

import numpy as np

FEATURES = ("fixed", "tokens", "attention", "context", "rows")
REFIT_TICKS = 128
LEAST_TICKS = 32
KEPT_OF_A_KIND = 32
LATEST_TICKS = 8
MOST_SCALED = 4.0
ERRORS_KEPT = 256


class TickWork(NamedTuple):
    """The features of a tick's time, on its largest pipeline stage and KV group.

    A tuple, because a plan makes dozens and a frozen dataclass takes twice as long to make.

    Args:
        tokens: padded rows of the bucket: decode rows and prompt tokens, own and shared.
        attention: sum over prompt rows of the context that they attend to, in tokens².
        context: KV tokens read: sum of the contexts of decodes and prompt chunks.
        rows: sampled rows: decodes and prompt chunks, without padding.
    """

    tokens: int = 0
    attention: float = 0.0
    context: float = 0.0
    rows: int = 0


def slice_work(layers: int, tokens: int, attention: float, context: float) -> TickWork:
    """The features of a slice of `layers` layers: those of one layer times the layers; `rows` counts the layers.

    Other arguments as in `TickWork`.
    """
    return TickWork(layers * tokens, layers * attention, layers * context, layers)


class WorkTimes(Protocol):
    """Predicts seconds from the features of a tick, or of a slice (`slice_work`)."""

    def seconds(self, work: TickWork) -> float:
        """Seconds of one tick or slice; all stages of a pipeline take it in lockstep."""

    def many(self, tokens: np.ndarray, attention: np.ndarray, context: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Seconds of many ticks; float64 arrays of one shape `[ticks]`, features as in `TickWork`."""

    def observe(self, work: TickWork, seconds: float) -> None:
        """Learn from a measured tick; a fixed model ignores it."""


class TimeModel(WorkTimes, Protocol):
    """Predicts the seconds of ticks, and of slices: fixed coefficients, fitted ones, or a roofline."""

    @property
    def slices(self) -> WorkTimes:
        """Predicts the seconds of slices."""


class TimeModelError(ValueError):
    """A saved time model cannot be used here."""


@dataclass(frozen=True)
class LinearTimeModel:
    """Fixed coefficients, in seconds per tick, row of the bucket, tokens², KV token read and sampled row.

    With all of them zero every tick is free, so chunks are as large as the shapes allow. `of_slices` predicts slices;
    without it, a stage counts as one layer.
    """

    fixed: float = 0.0
    tokens: float = 0.0
    attention: float = 0.0
    context: float = 0.0
    rows: float = 0.0
    of_slices: LinearTimeModel | None = None

    def __post_init__(self) -> None:
        for name in FEATURES:
            if not 0 <= getattr(self, name) < math.inf:
                raise TimeModelError(f"coefficient {name} is {getattr(self, name)}; it must be finite and at least 0")

    @property
    def slices(self) -> LinearTimeModel:
        """Predicts the seconds of slices."""
        return self.of_slices or self

    def per_layer(self, layers: int, overhead: float) -> LinearTimeModel:
        """The same coefficients with slices: each takes `overhead` seconds and its share of a stage's `layers`."""
        share = LinearTimeModel(
            overhead, self.tokens / layers, self.attention / layers, self.context / layers, self.fixed / layers
        )
        return replace(self, of_slices=share)

    def seconds(self, work: TickWork) -> float:
        """Seconds of one tick."""
        return (
            self.fixed
            + self.tokens * work.tokens
            + self.attention * work.attention
            + self.context * work.context
            + self.rows * work.rows
        )

    def many(self, tokens: np.ndarray, attention: np.ndarray, context: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Seconds of many ticks; float64 arrays of one shape `[ticks]`."""
        return (
            self.fixed + self.tokens * tokens + self.attention * attention + self.context * context + self.rows * rows
        )

    def observe(self, work: TickWork, seconds: float) -> None:
        """Learn nothing."""


class FittedTimeModel:
    """Learns the coefficients from measured ticks: robust non-negative least squares of relative errors.

    It keeps the latest ticks of every kind (bucket rows and size of attention). So a long series of decodes does not
    displace the prompts. It fits again every REFIT_TICKS ticks, at first every LEAST_TICKS. Tukey's biweight on the
    relative residuals gives no weight to ticks that took far longer than similar ones.

    A machine that becomes slower as a whole (heat, other users) produces such outliers, too. So predictions are scaled
    by the median of measured / fitted over the latest LATEST_TICKS ticks.

    `key` states what the measurements are valid for: model, mesh, dtype and device. `start` predicts until LEAST_TICKS
    ticks were seen, or until `settle`.
    """

    def __init__(self, key: dict[str, str], start: LinearTimeModel | None = None) -> None:
        self._key = dict(key)
        self._linear = start or LinearTimeModel()
        self._kept: dict[tuple[int, int], deque[tuple[float, ...]]] = {}
        self._errors: deque[float] = deque(maxlen=ERRORS_KEPT)
        self._latest: deque[tuple[TickWork, float]] = deque(maxlen=LATEST_TICKS)
        self._scale = 1.0
        self._ticks = 0
        self._slices: FittedTimeModel | None = None

    @property
    def slices(self) -> FittedTimeModel:
        """Learns the seconds of slices."""
        if self._slices is None:
            self._slices = FittedTimeModel(self._key)
        return self._slices

    @property
    def coefficients(self) -> LinearTimeModel:
        """The fitted coefficients."""
        return self._linear

    @property
    def ticks(self) -> int:
        """Ticks that it has learnt from."""
        return self._ticks

    @property
    def median_error(self) -> float | None:
        """Median `|predicted - measured| / measured` of the latest ticks, each predicted before it was learnt.

        None before the first fit.
        """
        return float(np.median(self._errors)) if self._errors else None

    def seconds(self, work: TickWork) -> float:
        """Seconds of one tick."""
        return self._scale * self._linear.seconds(work)

    def many(self, tokens: np.ndarray, attention: np.ndarray, context: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Seconds of many ticks; float64 arrays of one shape `[ticks]`."""
        return self._scale * self._linear.many(tokens, attention, context, rows)

    def observe(self, work: TickWork, seconds: float) -> None:
        """Learn from a measured tick; times that are not positive and finite are ignored."""
        if not 0 < seconds < math.inf:
            return
        if self._ticks >= LEAST_TICKS:
            self._errors.append(abs(self.seconds(work) - seconds) / seconds)
        self._keep((1.0, work.tokens, work.attention, work.context, work.rows, seconds))
        self._latest.append((work, seconds))
        self._ticks += 1
        if self._ticks % (REFIT_TICKS if self._ticks >= 4 * REFIT_TICKS else LEAST_TICKS) == 0:
            self._linear = self._fit()
        if len(self._latest) == LATEST_TICKS:
            self._scale = self._latest_scale()

    def settle(self, layers: int) -> None:
        """Fit to what was measured, however little, if nothing was fitted yet; the same of slices.

        Without any slice, one of n layers is predicted to take n / `layers` of a tick, until slices were measured.
        """
        if self._kept and self._ticks < LEAST_TICKS:
            self._linear = self._fit()
        if self.slices._ticks:
            self.slices.settle(layers)
        elif self._ticks:
            self.slices._linear = self._linear.per_layer(layers, 0.0).slices

    def save(self, path: Path) -> None:
        """Write key, coefficients and measurements as JSON, and the same of slices."""
        stated = {"key": self._key, **self._learned(), "slices": self.slices._learned()}
        new = path.with_name(f"{path.name}.{os.getpid()}")  # another server may save or read the file now
        new.write_text(json.dumps(stated), encoding="utf-8")
        new.replace(path)

    @classmethod
    def load(cls, path: Path, key: dict[str, str]) -> FittedTimeModel:
        """Read what `save` wrote.

        Raises:
            TimeModelError: the file cannot be read or was measured for something else.
        """
        try:
            stated = json.loads(path.read_text(encoding="utf-8"))
            if stated["key"] != key:
                raise TimeModelError(f"{path} was measured for {stated['key']}, not for {key}")
            model = cls._of(path, key, stated)
            model._slices = cls._of(path, key, stated["slices"])
        except TimeModelError:
            raise
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise TimeModelError(f"cannot read the time model {path}: {error!r}") from None
        return model

    def _learned(self) -> dict[str, Any]:
        """What it has learnt, for a file."""
        return {
            "coefficients": {name: getattr(self._linear, name) for name in FEATURES},
            "ticks": self._ticks,
            "median_error": self.median_error,
            "measured": [list(row) for kind in self._kept.values() for row in kind],
        }

    @classmethod
    def _of(cls, path: Path, key: dict[str, str], stated: Mapping[str, Any]) -> FittedTimeModel:
        """A model with what a file says that it has learnt."""
        model = cls(key, LinearTimeModel(**stated["coefficients"]))
        for row in stated["measured"]:
            if len(row) != len(FEATURES) + 1 or not all(map(math.isfinite, row)) or row[-1] <= 0:
                raise TimeModelError(f"{path} holds a measurement that is not one: {row}")
            model._keep(tuple(map(float, row)))
        model._ticks = int(stated["ticks"])
        return model

    def _keep(self, row: tuple[float, ...]) -> None:
        kind = int(row[1]), int(math.log2(row[2] + 1)) // 2
        self._kept.setdefault(kind, deque(maxlen=KEPT_OF_A_KIND)).append(row)

    def _fit(self) -> LinearTimeModel:
        rows = np.array([row for kind in self._kept.values() for row in kind])
        seconds = rows[:, -1:]
        # fit relative errors, so that a tick of 5 ms matters as much as one of 200 ms
        coefficients = robust_fit(rows[:, :-1] / seconds, np.ones(len(rows)))
        return LinearTimeModel(*coefficients.tolist())

    def _latest_scale(self) -> float:
        fitted = [(self._linear.seconds(work), seconds) for work, seconds in self._latest]
        if not all(predicted for predicted, _ in fitted):
            return 1.0  # the fit predicts that some tick is free
        scale = median(seconds / predicted for predicted, seconds in fitted)
        return min(max(scale, 1 / MOST_SCALED), MOST_SCALED)


def robust_fit(a: np.ndarray, b: np.ndarray, rounds: int = 10) -> np.ndarray:
    """Non-negative `x [features]` for `a [ticks, features] @ x = b [ticks]`, without the influence of outliers.

    Iteratively reweighted least squares, with Tukey's biweight of the residuals over their median deviation.
    """
    weights = np.ones(len(b))
    x = nonnegative_least_squares(a, b)
    for _ in range(rounds):
        residual = a @ x - b
        deviation = max(1.4826 * float(np.median(np.abs(residual - np.median(residual)))), 1e-3)
        weights = np.clip(1 - (residual / (4.685 * deviation)) ** 2, 0, None)
        x = nonnegative_least_squares(a * weights[:, None], b * weights)
    return x


def nonnegative_least_squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The non-negative `x [features]` with the least `|a @ x - b|`, `a [ticks, features]`, for few features.

    The solution is the plain least-squares solution on its own non-zero features, so all subsets are tried.
    """
    scale = np.linalg.norm(a, axis=0)
    used = np.flatnonzero(scale)
    a = a[:, used] / scale[used]
    gram, target = a.T @ a, a.T @ b
    best, least = np.zeros(len(used)), 0.0
    for subset in range(1, 2 ** len(used)):
        chosen = [n for n in range(len(used)) if subset >> n & 1]
        try:
            part = np.linalg.solve(gram[np.ix_(chosen, chosen)], target[chosen])
        except np.linalg.LinAlgError:
            continue  # a smaller subset does as well
        if part.min() < 0:
            continue
        objective = float(part @ gram[np.ix_(chosen, chosen)] @ part - 2 * part @ target[chosen])
        if objective < least:
            best, least = np.zeros(len(used)), objective
            best[chosen] = part
    x = np.zeros(len(scale))
    x[used] = best / scale[used]
    return x
