"""A workload in words, for titles and tables."""

from __future__ import annotations

import math
from pathlib import Path

from medha_jax.workload.config import ConvoyConfig, WorkloadConfig


def describe(config: WorkloadConfig | ConvoyConfig) -> str:
    """One line: `medha-5pct x 1/32, poisson at 2 requests/s, 200 requests, seed 0`."""
    if isinstance(config, ConvoyConfig):
        short = _range((config.short_prompt, config.short_prompt_most or config.short_prompt))
        long = "one prompt" if config.longs == 1 else f"{config.longs:,} prompts"
        return (
            f"{long} of {config.long_prompt:,} tokens and {config.shorts:,} of {short} tokens, "
            f"one every {config.interval:g} s, seed {config.seed}"
        )
    parts = [_lengths(config), _arrivals(config)]
    if config.num_requests is not None:
        parts.append(f"{config.num_requests:,} requests")
    if config.duration is not None:
        parts.append(f"{config.duration:g} s")
    if config.probe_rate:
        parts.append(f"{config.probe_rate:g} probes/s of {config.probe_prompt:,} tokens")
    if config.cancel_rate:
        parts.append(f"{100 * config.cancel_rate:g} % cancelled")
    parts += [f"{100 * share:g} % of priority {priority}" for priority, share in config.priorities]
    return ", ".join([*parts, f"seed {config.seed}"])


def _lengths(config: WorkloadConfig) -> str:
    words = config.source
    if config.path is not None:
        words += f" file {Path(config.path).name}"
    elif config.source == "random":
        words += f" {_range(config.prompt_range)} + {_range(config.output_range)} tokens"
    if config.scale != 1:
        words += f" x {_factor(config.scale)}"
    if config.output_scale not in (None, config.scale):
        words += f" (output x {_factor(config.output_scale)})"
    return words


def _arrivals(config: WorkloadConfig) -> str:
    if config.process == "trace":
        return "the trace's times" + ("" if config.speed == 1 else f", {config.speed:g} times as fast")
    if config.rate == math.inf:
        return "all at once"
    if config.process == "ramp":
        return f"ramp from {config.rate:g} to {config.rate_end:g} requests/s"
    words = f"{config.process} at {config.rate:g} requests/s"
    return words if config.burstiness is None else f"{words} with burstiness {config.burstiness:g}"


def _range(lengths: tuple[int, int]) -> str:
    low, high = lengths
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def _factor(scale: float) -> str:
    parts = round(1 / scale)
    return f"1/{parts}" if parts > 1 and math.isclose(scale, 1 / parts) else f"{scale:g}"
