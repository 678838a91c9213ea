"""Layouts of a model compared: estimates of those that fit, reasons of the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medha_jax.simulate.estimate import Estimate, Estimator, Targets, mark_front
from medha_jax.simulate.hardware import Hardware
from medha_jax.simulate.layouts import Candidate, Refused, look_at
from medha_jax.specs.model import Architecture
from medha_jax.workload import WorkloadConfig, build, preset_of

SAMPLE, SAMPLE_SECONDS = 0, 400.0  # seed, and seconds of the requests that represent a workload


@dataclass(frozen=True)
class LayoutPlan:
    """The layouts of a model.

    Args:
        context: tokens of a longest request.
        found: those that fit: the Pareto front first, and best goodput first within front and rest.
        refused: those that are impossible.
    """

    hardware: Hardware
    context: int
    found: tuple[Estimate, ...]
    refused: tuple[Refused, ...]


def plan_layouts(
    every: Sequence[Candidate],
    model: Architecture,
    hardware: Hardware,
    context: int,
    *,
    dtype: str,
    slots: int,
    workload: str,
    targets: Targets,
    on_progress: Callable[[int], None],
) -> LayoutPlan:
    """Estimate every candidate.

    Args:
        context: tokens of a longest request.
        dtype: of weights, activations and KV.
        slots: most requests at once.
        workload: name of a preset, or the percentage of long requests in a mix.
        on_progress: called with the number of candidates that were looked at.

    Raises:
        WorkloadError: there is no such workload.
    """
    config = WorkloadConfig(source=preset_of(workload), duration=SAMPLE_SECONDS, seed=SAMPLE)
    sample = build(config).requests
    found: list[Estimate] = []
    refused: list[Refused] = []
    for done, candidate in enumerate(every, 1):
        looked = look_at(candidate, model, hardware, dtype, context, slots)
        if isinstance(looked, Refused):
            refused.append(looked)
        else:
            found.append(Estimator(looked, hardware, context, targets, slots).estimate(sample))
        on_progress(done)
    fronts = mark_front(found) if found else []
    marked = [dataclasses.replace(one, front=front) for one, front in zip(found, fronts, strict=True)]
    marked.sort(key=lambda one: (not one.front, -one.goodput_per_s, one.ttft_s))
    return LayoutPlan(hardware, context, tuple(marked), tuple(refused))
