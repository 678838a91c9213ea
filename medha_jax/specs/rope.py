"""Rotary position embeddings and the rules that stretch them to longer contexts.

Sources: RoFormer (arXiv 2104.09864), position interpolation (arXiv 2306.15595), dynamic NTK, YaRN
(arXiv 2309.00071) and the frequency-band rule published with Llama 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True)
class RopeScaling:
    """One rule that turns positions into rotation angles.

    `original_context` is the context that the base frequencies were trained for, in tokens.
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_context: int = 2048
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    @property
    def follows_length(self) -> bool:
        """Whether angles depend on the sequence length, and not only on the position."""
        return self.kind == "dynamic"

    def extended_context(self, stated: int) -> int:
        """Tokens that the rule makes usable, if the config states `stated` positions.

        Linear, dynamic and YaRN configs state the length before stretching; Llama 3 configs state the length after it.
        """
        if self.kind == "yarn":
            return max(stated, int(self.original_context * self.factor))
        return int(stated * self.factor) if self.kind in ("linear", "dynamic") else stated

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RopeScaling:
        """Read the rule from a Hugging Face `config.json`, in its old form or its new one.

        Raises:
            ValueError: the rule is unknown, or one of its numbers is missing.
        """
        stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = stated.get("rope_type", stated.get("type", "default"))
        if kind not in KINDS:
            raise ValueError(f"RoPE type {kind!r} is not supported; supported are {', '.join(KINDS)}")
        theta = float(stated.get("rope_theta", config.get("rope_theta", 10000.0)))
        context = int(config["max_position_embeddings"])
        if kind == "default":
            return cls(theta=theta, original_context=context)
        if "factor" not in stated and not (kind == "yarn" and "original_max_position_embeddings" in stated):
            raise ValueError(f"RoPE type {kind!r} needs `factor`")
        if kind == "dynamic":
            # the published rule measures growth against max_position_embeddings, not the original context
            return cls(kind, theta, float(stated["factor"]), context)
        original = int(stated.get("original_max_position_embeddings") or context)
        if kind == "linear":
            return cls(kind, theta, float(stated["factor"]), original)
        if kind == "llama3":
            needed = {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
            missing = needed - set(stated)
            if missing:
                raise ValueError(f"RoPE type 'llama3' needs `{'`, `'.join(sorted(missing))}`")
            low, high = float(stated["low_freq_factor"]), float(stated["high_freq_factor"])
            return cls(kind, theta, float(stated["factor"]), original, low, high)
        factor = float(stated.get("factor") or context / original)
        return cls(
            kind,
            theta,
            factor,
            original,
            beta_fast=float(stated.get("beta_fast") or 32.0),
            beta_slow=float(stated.get("beta_slow") or 1.0),
            truncate=bool(stated.get("truncate", True)),
            attention_factor=_yarn_attention_factor(stated, factor),
        )


def _yarn_attention_factor(stated: Mapping[str, Any], factor: float) -> float:
    """Factor on cos and sin that replaces YaRN's attention temperature (arXiv 2309.00071, eq. 22)."""

    def temperature(scale: float, weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(scale) + 1.0 if scale > 1 else 1.0

    if stated.get("attention_factor") is not None:
        return float(stated["attention_factor"])
    mscale, over_all = stated.get("mscale"), stated.get("mscale_all_dim")
    if mscale and over_all:
        return temperature(factor, float(mscale)) / temperature(factor, float(over_all))
    return temperature(factor)


def inverse_frequencies(rope: RopeScaling, head_dim: int) -> np.ndarray:
    """Radians per token of each rotated pair, fp32 `[head_dim / 2]`, up to the original context."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverse = (np.float32(1.0) / np.float32(rope.theta) ** exponents).astype(np.float32)
    if rope.kind == "linear":
        return inverse / np.float32(rope.factor)
    if rope.kind == "llama3":
        return _llama3(rope, inverse)
    if rope.kind == "yarn":
        return _yarn(rope, inverse, head_dim)
    return inverse


def _llama3(rope: RopeScaling, inverse: np.ndarray) -> np.ndarray:
    wavelength = 2 * np.pi / inverse
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = (rope.original_context / wavelength - low) / (high - low)
    blended = (1 - smooth) * inverse / rope.factor + smooth * inverse
    slow = wavelength > rope.original_context / low
    fast = wavelength < rope.original_context / high
    return np.where(slow, inverse / rope.factor, np.where(fast, inverse, blended)).astype(np.float32)


def _yarn(rope: RopeScaling, inverse: np.ndarray, head_dim: int) -> np.ndarray:
    def pair_that_turns(rotations: float) -> float:
        length = rope.original_context / (rotations * 2 * math.pi)
        return head_dim * math.log(length) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low if high != low else 0.001
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / span, 0, 1).astype(np.float32)
    frequencies: np.ndarray = (inverse / rope.factor * ramp + inverse * (1 - ramp)).astype(np.float32)
    return frequencies


def rotary_constants(rope: RopeScaling, head_dim: int) -> dict[str, np.ndarray]:
    """A rule as numbers, so that one compiled program serves all rules.

    `rope.inverse` (radians per token of each pair) is multiplied by `stretch ** rope.bend`. `stretch` grows by
    `rope.growth` per token beyond `rope.original`. Growth and bend are 0 for rules that ignore the length.

    Dynamic NTK has `theta * stretch ** (d / (d - 2))` to the power of `-2 i / d`: a bend of `-2 i / (d - 2)`.
    """
    bend, growth = np.zeros(head_dim // 2, np.float32), 0.0
    if rope.follows_length:
        bend = -np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim - 2)
        growth = rope.factor / rope.original_context
    return {
        "rope.inverse": inverse_frequencies(rope, head_dim),
        "rope.bend": bend,
        "rope.growth": np.array(growth, np.float32),
        "rope.original": np.array(rope.original_context, np.float32),
        "rope.scale": np.array(rope.attention_factor, np.float32),
    }
