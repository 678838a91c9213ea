"""What is asked of a server, and when: lengths, arrivals, presets. Real benchmarks and simulations share it. No JAX."""

from medha_jax.workload.build import build, build_convoy
from medha_jax.workload.config import FILES, PROCESSES, SOURCES, ConvoyConfig, WorkloadConfig
from medha_jax.workload.describe import describe
from medha_jax.workload.presets import PRESETS, load_preset
from medha_jax.workload.requests import (
    Arrival,
    Lengths,
    Mix,
    Quantiles,
    WorkloadError,
    convoy,
    load_mix,
    mix_from,
    prompt_tokens,
)
from medha_jax.workload.slo import Isolated, Slos
from medha_jax.workload.workload import Request, Workload

__all__ = [
    "FILES",
    "PRESETS",
    "PROCESSES",
    "SOURCES",
    "Arrival",
    "ConvoyConfig",
    "Isolated",
    "Lengths",
    "Mix",
    "Quantiles",
    "Request",
    "Slos",
    "Workload",
    "WorkloadConfig",
    "WorkloadError",
    "build",
    "build_convoy",
    "convoy",
    "describe",
    "load_mix",
    "load_preset",
    "mix_from",
    "prompt_tokens",
]
