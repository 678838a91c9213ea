"""The requests sent to a server: lengths, arrival times, presets. Benchmarks and simulations share them. No JAX."""

from medha_jax.workload.build import build, build_convoy, build_offered
from medha_jax.workload.config import FILES, PROCESSES, SOURCES, ConvoyConfig, WorkloadConfig
from medha_jax.workload.describe import describe
from medha_jax.workload.mixes import Lengths, Mix, Quantiles, WorkloadError, load_mix, mix_from
from medha_jax.workload.presets import PRESETS, load_preset, preset_of
from medha_jax.workload.requests import Workload, WorkloadRequest
from medha_jax.workload.slo import Isolated, Slos

__all__ = [
    "FILES",
    "PRESETS",
    "PROCESSES",
    "SOURCES",
    "ConvoyConfig",
    "Isolated",
    "Lengths",
    "Mix",
    "Quantiles",
    "Slos",
    "Workload",
    "WorkloadConfig",
    "WorkloadError",
    "WorkloadRequest",
    "build",
    "build_convoy",
    "build_offered",
    "describe",
    "load_mix",
    "load_preset",
    "mix_from",
    "preset_of",
]
