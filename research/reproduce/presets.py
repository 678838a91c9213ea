"""The presets by name."""

from __future__ import annotations

from collections.abc import Callable

from medha_jax.config import GROUP, STAGE
from research.reproduce.attainment import attainment
from research.reproduce.chunks import chunks, pareto
from research.reproduce.isolated import isolated
from research.reproduce.report import PresetRun, Reproduction
from research.reproduce.scaling import kvp, spp
from research.reproduce.systems import ablation, capacity, systems
from research.reproduce.three import three

PRESETS: dict[str, Callable[[PresetRun], Reproduction]] = {
    "isolated": isolated,
    "attainment": attainment,
    "systems": systems,
    "capacity": capacity,
    "ablation": ablation,
    STAGE: spp,
    GROUP: kvp,
    "3d": three,
    "chunks": chunks,
    "pareto": pareto,
}
