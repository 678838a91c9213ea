"""The presets by name."""

from __future__ import annotations

from collections.abc import Callable

from medha_jax.config import GROUP, STAGE
from medha_jax.simulate.reproduce.attainment import attainment
from medha_jax.simulate.reproduce.chunks import chunks, pareto
from medha_jax.simulate.reproduce.isolated import isolated
from medha_jax.simulate.reproduce.report import Reproduction, Run
from medha_jax.simulate.reproduce.scaling import kvp, spp
from medha_jax.simulate.reproduce.systems import ablation, capacity, systems
from medha_jax.simulate.reproduce.three import three

PRESETS: dict[str, Callable[[Run], Reproduction]] = {
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
