"""When requests are due: renewal processes, a ramp, even steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from medha_jax.workload.config import MAX_REQUESTS, WorkloadConfig
from medha_jax.workload.mixes import WorkloadError

BLOCK = 4096  # times drawn at once


def due_times(config: WorkloadConfig, burstiness: float, rng: np.random.Generator) -> np.ndarray:
    """Increasing seconds after the start at which requests are due; for every process but "trace".

    A longer run of the same seed begins with the same times. Poisson and gamma start with a gap. `burstiness` is the
    shape of gamma's gaps.

    Raises:
        WorkloadError: no request is due before the end, or too many are.
    """
    count = config.num_requests or MAX_REQUESTS + 1
    end = math.inf if config.duration is None else config.duration
    if config.rate == math.inf:
        if config.num_requests is None:
            raise WorkloadError("all requests at once (rate inf) have no end; give a number of requests")
        return np.zeros(count)
    if config.process == "constant":
        wanted = count if end == math.inf else min(count, math.ceil(end * config.rate))
        times = np.arange(wanted) / config.rate
        times = times[times < end]
    elif config.process == "ramp":
        times = _until(_ramp(config, rng), count, end)
    else:
        shape = burstiness if config.process == "gamma" else 1.0
        times = _until(_renewals(shape, config.rate, rng), count, end)
    if not len(times):
        raise WorkloadError(f"no request is due within {end:g} s at {config.rate:g} requests/s; give a longer duration")
    if len(times) > MAX_REQUESTS:
        raise WorkloadError(f"more than {MAX_REQUESTS:,} requests are due within {end:g} s; allowed are that many")
    return times


def _until(blocks: Iterator[np.ndarray], count: int, end: float) -> np.ndarray:
    """The first `count` times that are not after `end`."""
    taken: list[np.ndarray] = []
    total = 0
    for block in blocks:
        taken.append(block[block < end])
        total += len(taken[-1])
        if total >= count or block[-1] >= end:
            break
    return np.concatenate(taken)[:count]


def _renewals(shape: float, rate: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Times with gamma distributed gaps of mean 1/rate; shape 1 is the exponential distribution."""
    start = 0.0
    while True:
        times = start + np.cumsum(rng.gamma(shape, 1 / (shape * rate), BLOCK))
        start = float(times[-1])
        yield times


def _ramp(config: WorkloadConfig, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """A Poisson process with a rate that changes linearly, then stays."""
    moment = ramp_inverse(config)
    for units in _renewals(1.0, 1.0, rng):
        yield moment(units)


def ramp_inverse(config: WorkloadConfig) -> Callable[[np.ndarray], np.ndarray]:
    """The time by which a given number of requests is expected, if the rate goes from a to b in T seconds.

    By time t, `a t + (b - a) t² / (2 T)` are expected, and b a second after T. The inverse also holds for a = b.
    """
    a = config.rate
    b = a if config.rate_end is None else config.rate_end
    seconds = config.duration if config.duration is not None else 2 * (config.num_requests or 1) / (a + b)
    by_end = seconds * (a + b) / 2

    def moment(expected: np.ndarray) -> np.ndarray:
        within = np.minimum(expected, by_end)
        during = 2 * within / (a + np.sqrt(a * a + 2 * within * (b - a) / seconds))
        return np.asarray(during + (expected - within) / b)

    return moment
