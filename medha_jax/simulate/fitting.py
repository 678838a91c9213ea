"""Fits times (`medha_jax.simulate.measured`) to the ticks and slices of a machine, and tells the errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medha_jax.config import MeshConfig
from medha_jax.scheduler.time_model import LinearTimeModel, nonnegative_least_squares, robust_fit
from medha_jax.simulate.measured import MeasuredSlice, MeasuredTick, MeasuredTimes
from medha_jax.specs.buckets import Bucket, all_buckets

FITTED = ("fixed", "tokens", "attention", "context", "decode", "row", "beside")
OWN_BASE_TICKS = 5
BLOCKS = (1, 64, 256, 1024)  # tokens
MOST_DELAYED = 5.0  # times the predicted seconds; a longer tick is not the machine's own doing
MOST_HOST_S = 0.05  # the same limit for the host between two ticks


@dataclass(frozen=True)
class Errors:
    """`|predicted - measured| / measured` over ticks of one kind, or over slices."""

    regime: str
    ticks: int
    median: float
    p90: float
    mean: float


def fit(ticks: Sequence[MeasuredTick], mesh: MeshConfig) -> MeasuredTimes:
    """Fit coefficients to measured ticks by their relative errors; the fit is robust against outliers."""
    blocks = [(block, decode_block) for block in BLOCKS for decode_block in BLOCKS]
    fitted = [_fitted(ticks, mesh, *sizes) for sizes in blocks]
    times = min(fitted, key=lambda found: errors(found, ticks)[0].mean)
    ratios = [tick.seconds / times.predicted(tick) for tick in ticks]
    delays = float(np.mean([ratio for ratio in ratios if ratio < MOST_DELAYED] or [1.0]))
    host, host_row, host_felt = _host(ticks)
    return dataclasses.replace(times, delays=delays, host=host, host_row=host_row, host_felt=host_felt)


def fit_slices(slices: Sequence[MeasuredSlice]) -> LinearTimeModel:
    """Fit coefficients to measured slices by their relative errors; the fit is robust against outliers."""
    seconds = np.array([one.seconds for one in slices])
    columns = np.array([(1.0, *one.features) for one in slices])
    return LinearTimeModel(*robust_fit(columns / seconds[:, None], np.ones(len(slices))).tolist())


def _host(ticks: Sequence[MeasuredTick]) -> tuple[float, float, float]:
    """Mean seconds of the host between ticks: a constant at best speed, per row, and added at slowness 2."""
    slowness = _slowness(ticks)
    gaps = [
        ((1.0, tick.work.rows, slow), tick.host_s)
        for tick, slow in zip(ticks, slowness, strict=True)
        if tick.host_s is not None and tick.host_s < MOST_HOST_S
    ]
    if not gaps:
        return 0.0, 0.0, 0.0
    columns, waits = zip(*gaps, strict=True)
    fixed, row, felt = nonnegative_least_squares(np.array(columns), np.array(waits)).tolist()
    return fixed + felt, row, felt


def _slowness(ticks: Sequence[MeasuredTick]) -> list[float]:
    """Slowness of the machine at each tick; zeros if it was not measured, because ones would look like a constant."""
    measured = any(tick.slowness != 1 for tick in ticks)
    return [tick.slowness if measured else 0.0 for tick in ticks]


def _fitted(ticks: Sequence[MeasuredTick], mesh: MeshConfig, block: int, decode_block: int) -> MeasuredTimes:
    """Median times, with KV read in blocks of `block` tokens by prompt chunks and `decode_block` by decodes."""
    seconds = np.array([tick.seconds for tick in ticks])
    columns = np.array([_features(tick, block, decode_block) for tick in ticks])
    slowness = np.array(_slowness(ticks))
    columns = np.column_stack([columns, slowness, slowness * [tick.shape.rows for tick in ticks]])
    *coefficients, felt, felt_tokens = robust_fit(columns / seconds[:, None], np.ones(len(ticks))).tolist()
    named = dict(zip(FITTED, coefficients, strict=True))
    named["fixed"] += felt
    named["tokens"] += felt_tokens
    plain = MeasuredTimes(**named, felt=felt, felt_tokens=felt_tokens, block=block, decode_block=decode_block)
    left: dict[Bucket, list[tuple[float, float]]] = {}
    for tick in ticks:
        rest = tick.seconds - plain.predicted(tick) + plain.base(tick.shape)
        left.setdefault(tick.shape, []).append((rest, 1 / tick.seconds))
    compiled = set(all_buckets(mesh.buckets, mesh.spread_buckets))
    bases = {
        shape: max(_weighted_median(rest), plain.longer(shape))
        for shape, rest in left.items()
        if len(rest) >= OWN_BASE_TICKS and shape in compiled
    }
    return dataclasses.replace(plain, bases=bases)


def _weighted_median(weighted: Sequence[tuple[float, float]]) -> float:
    """The value with the same weight below and above, of pairs (value, weight)."""
    values, weights = np.array(sorted(weighted)).T
    reached = np.cumsum(weights)
    return float(values[np.searchsorted(reached, reached[-1] / 2)])


def errors(
    times: MeasuredTimes, ticks: Sequence[MeasuredTick], slices: Sequence[MeasuredSlice] = ()
) -> tuple[Errors, ...]:
    """Errors of times: over all ticks, over each regime, and over slices."""
    kinds: dict[str, list[float]] = {"all": []}
    for tick in ticks:
        off = abs(times.predicted(tick) - tick.seconds) / tick.seconds
        kinds["all"].append(off)
        kinds.setdefault(tick.regime, []).append(off)
    kinds["slices"] = [abs(times.slices.seconds(one.features) - one.seconds) / one.seconds for one in slices]
    return tuple(
        Errors(kind, len(off), float(np.median(off)), float(np.percentile(off, 90)), float(np.mean(off)))
        for kind, off in kinds.items()
        if off
    )


def _features(tick: MeasuredTick, block: int, decode_block: int) -> tuple[float, ...]:
    """Factors of the coefficients, in the order of FITTED."""
    work = tick.work
    squares = sum(squares for squares, _ in work.chunks)
    read = sum(-(-read // block) * block for _, read in work.chunks)
    decoded = -(-work.context // decode_block) * decode_block
    return 1.0, tick.shape.rows, squares, read, decoded, work.rows, float(0 < len(work.chunks) < work.rows)
