"""What is asked of a server, and when: lengths, arrivals, presets. Real benchmarks and simulations share it. No JAX."""

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

__all__ = [
    "Arrival",
    "Lengths",
    "Mix",
    "Quantiles",
    "WorkloadError",
    "convoy",
    "load_mix",
    "mix_from",
    "prompt_tokens",
]
