"""Rotary position embeddings and the rules that stretch them to longer contexts.

Sources: RoFormer (arXiv 2104.09864), position interpolation (arXiv 2306.15595), dynamic NTK, YaRN
(arXiv 2309.00071) and the frequency-band rule published with Llama 3.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
