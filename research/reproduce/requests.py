"""The requests of a preset's traffic."""

from __future__ import annotations

from medha_jax.workload import WorkloadConfig, WorkloadRequest, build, preset_of


def poisson(mix: str, rate: float, seconds: float, seed: int) -> tuple[WorkloadRequest, ...]:
    """Poisson arrivals of one of the authors' mixes (`0`, `1`, `5` % long), at `rate` requests a second."""
    return build(WorkloadConfig(source=preset_of(mix), rate=rate, duration=seconds, seed=seed)).requests
