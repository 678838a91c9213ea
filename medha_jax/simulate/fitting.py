"""The times of a machine fitted to its ticks (`medha_jax.simulate.measured`), and how far they are off."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medha_jax.config import MeshConfig
from medha_jax.scheduler.time_model import nonnegative_least_squares, robust_fit
from medha_jax.simulate.measured import MeasuredTimes, Tick
from medha_jax.simulate.sizes import shapes_of
from medha_jax.simulate.times import Shape

FITTED = ("fixed", "tokens", "attention", "context", "decode", "row", "beside")
OWN_BASE_TICKS = 5
BLOCKS = (1, 64, 256, 1024)  # tokens
SENSITIVITIES = tuple(step / 10 for step in range(16))
MOST_DELAYED = 5.0  # times its predicted seconds; what takes longer than that is none of the machine's own
MOST_HOST_S = 0.05  # likewise, of the host between two ticks


@dataclass(frozen=True)
class Errors:
    """`|predicted - measured| / measured` over ticks of one kind."""

    regime: str
    ticks: int
    median: float
    p90: float
    mean: float


def fit(ticks: Sequence[Tick], mesh: MeshConfig) -> MeasuredTimes:
    """Coefficients that give measured ticks, by relative errors in which outliers do not count."""

    def best(times: Iterable[MeasuredTimes]) -> MeasuredTimes:
        return min(times, key=lambda found: errors(found, ticks)[0].mean)

    blocks = [(block, decode_block) for block in BLOCKS for decode_block in BLOCKS]
    varying = any(tick.slowness != 1 for tick in ticks)
    sensitivity = 1.0 if varying else 0.0
    times = best(_fitted(ticks, mesh, sizes, sensitivity) for sizes in blocks)
    for _ in range(2 if varying else 0):  # either is found better when the other is known
        sizes = times.block, times.decode_block
        times = best(_fitted(ticks, mesh, sizes, sensitivity) for sensitivity in SENSITIVITIES)
        sensitivity = times.sensitivity
        times = best(_fitted(ticks, mesh, sizes, sensitivity) for sizes in blocks)
    ratios = [tick.seconds / times.predicted(tick) for tick in ticks]
    delays = float(np.mean([ratio for ratio in ratios if ratio < MOST_DELAYED] or [1.0]))
    gaps = [
        (tick.work.rows, tick.host_s / times.slowed(tick.slowness))
        for tick in ticks
        if tick.host_s is not None and tick.host_s < MOST_HOST_S
    ]
    host, host_row = 0.0, 0.0
    if gaps:
        rows, waits = np.array(gaps, float).T
        host, host_row = nonnegative_least_squares(np.stack([np.ones_like(rows), rows], axis=1), waits).tolist()
    return dataclasses.replace(times, delays=delays, host=host, host_row=host_row)


def _fitted(ticks: Sequence[Tick], mesh: MeshConfig, blocks: tuple[int, int], sensitivity: float) -> MeasuredTimes:
    """Medians of ticks, where KV is read in blocks of so many tokens, by prompt chunks and by decodes."""
    block, decode_block = blocks
    reading: dict[str, Any] = {"block": block, "decode_block": decode_block, "sensitivity": sensitivity}
    slowed = np.array([1 + sensitivity * (tick.slowness - 1) for tick in ticks])
    seconds = np.array([tick.seconds for tick in ticks]) / slowed
    columns = np.array([_features(tick, block, decode_block) for tick in ticks])
    coefficients = robust_fit(columns / seconds[:, None], np.ones(len(ticks))).tolist()
    plain = MeasuredTimes(**dict(zip(FITTED, coefficients, strict=True)), **reading)
    left: dict[Shape, list[tuple[float, float]]] = {}
    for tick, took in zip(ticks, seconds.tolist(), strict=True):
        inside = plain.tick_seconds(tick.shape, tick.work) - plain.base(tick.shape)
        left.setdefault(tick.shape, []).append((took - inside, 1 / took))
    compiled = set(shapes_of(mesh))
    bases = {
        shape: max(_weighted_median(rest), 0.0)
        for shape, rest in left.items()
        if len(rest) >= OWN_BASE_TICKS and shape in compiled
    }
    return dataclasses.replace(plain, bases=bases)


def _weighted_median(weighted: Sequence[tuple[float, float]]) -> float:
    """The value below and above which there is the same weight, of (value, weight)."""
    values, weights = np.array(sorted(weighted)).T
    reached = np.cumsum(weights)
    return float(values[np.searchsorted(reached, reached[-1] / 2)])


def errors(times: MeasuredTimes, ticks: Sequence[Tick]) -> tuple[Errors, ...]:
    """How far times are off, over all ticks and over each kind."""
    kinds: dict[str, list[float]] = {"all": []}
    for tick in ticks:
        off = abs(times.predicted(tick) - tick.seconds) / tick.seconds
        kinds["all"].append(off)
        kinds.setdefault(tick.regime, []).append(off)
    return tuple(
        Errors(kind, len(off), float(np.median(off)), float(np.percentile(off, 90)), float(np.mean(off)))
        for kind, off in kinds.items()
        if off
    )


def _features(tick: Tick, block: int, decode_block: int) -> tuple[float, ...]:
    """In the order of FITTED."""
    work = tick.work
    squares = sum(squares for squares, _ in work.chunks)
    read = sum(-(-read // block) * block for _, read in work.chunks)
    decoded = -(-work.context // decode_block) * decode_block
    return 1.0, tick.shape.rows, squares, read, decoded, work.rows, float(0 < len(work.chunks) < work.rows)
