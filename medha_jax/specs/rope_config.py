"""Reads the rule of RoPE from a `config.json`, in its old form (`rope_scaling`) or its new one (`rope_parameters`)."""

from __future__ import annotations

import math

from medha_jax.specs.config_values import ConfigValues
from medha_jax.specs.rope import KINDS, RopeScaling

THETA = 10000.0
_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_YARN = {"attention_factor", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim"}
# the keys that each rule reads
_KEYS = {
    "default": _COMMON,
    "linear": _COMMON | {"factor"},
    "dynamic": _COMMON | {"factor"},
    "llama3": _COMMON | {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "yarn": _COMMON | {"factor", "original_max_position_embeddings"} | _YARN,
}


def read_rope(config: ConfigValues) -> tuple[RopeScaling, list[str]]:
    """The rule, and a line for each thing that the file states beside it.

    As in transformers 5, `rope_scaling` replaces `rope_parameters`.

    Raises:
        KeyError: a size that the rule needs is missing.
        ValueError: the rule is unknown, a number is missing or wrong, or the two forms disagree about theta.
    """
    block, notes = _block(config)
    nested = sorted(name for name, value in block.content.items() if isinstance(value, dict))
    if nested:
        raise ValueError(f"{block.where}{nested[0]} is an object; one RoPE rule for all layers is supported")
    kind = block.text("rope_type", block.text("type", "default"))
    if kind not in KINDS:
        raise ValueError(f"RoPE type {kind!r} is not supported; supported are {', '.join(KINDS)}")
    for place in (config, block):
        if place.number("partial_rotary_factor", 1.0) != 1:
            raise ValueError(f"{place.where}partial_rotary_factor is not supported; whole heads are rotated")
    unread = sorted(name for name in block.content if block.has(name) and name not in _KEYS[kind])
    if unread:
        notes.append(
            f"config.json: RoPE type {kind!r} does not read {', '.join(block.where + name for name in unread)}"
        )
    return _rule(kind, block, config), notes


def _block(config: ConfigValues) -> tuple[ConfigValues, list[str]]:
    old, new = config.block("rope_scaling"), config.block("rope_parameters")
    if not old.content or not new.content or old.content == new.content:
        return (old if old.content else new), []
    if new.has("rope_theta") and not (old.has("rope_theta") or config.has("rope_theta")):
        raise ValueError(
            "rope_scaling replaces rope_parameters, whose rope_theta would be lost; "
            "write all of the rule, with rope_theta, into one of them"
        )
    return old, ["config.json: rope_scaling replaces rope_parameters"]


def _rule(kind: str, block: ConfigValues, config: ConfigValues) -> RopeScaling:
    theta = block.number("rope_theta", config.number("rope_theta", THETA))
    if theta <= 1:
        raise ValueError(f"rope_theta is {theta:g}; it must be above 1")
    context = config.whole("max_position_embeddings")
    if kind == "default":
        return RopeScaling(theta=theta, original_context=context)
    # as in transformers, a length beside the block comes before the one inside
    original = config if config.has("original_max_position_embeddings") else block
    if not block.has("factor") and not (kind == "yarn" and original.has("original_max_position_embeddings")):
        raise ValueError(f"RoPE type {kind!r} needs `factor`")
    if kind in ("linear", "dynamic"):
        # dynamic: the published rule measures growth against max_position_embeddings
        return RopeScaling(kind, theta, block.number("factor"), context)
    trained = original.whole("original_max_position_embeddings", context)
    if kind == "llama3":
        needed = [name for name in ("high_freq_factor", "low_freq_factor") if not block.has(name)]
        needed += [name for name in ("original_max_position_embeddings",) if not original.has(name)]
        if needed:
            raise ValueError(f"RoPE type 'llama3' needs `{'`, `'.join(needed)}`")
        low, high = block.number("low_freq_factor"), block.number("high_freq_factor")
        if low >= high:
            raise ValueError(f"{block.where}low_freq_factor is {low:g}; it must be below high_freq_factor, {high:g}")
        return RopeScaling(kind, theta, block.number("factor"), trained, low, high)
    factor = block.number("factor", context / trained)
    return RopeScaling(
        kind,
        theta,
        factor,
        trained,
        beta_fast=block.number("beta_fast", 32.0),
        beta_slow=block.number("beta_slow", 1.0),
        truncate=block.switch("truncate", True),
        attention_factor=_yarn_attention_factor(block, factor),
    )


def _yarn_attention_factor(block: ConfigValues, factor: float) -> float:
    """Factor on cos and sin that replaces YaRN's attention temperature (arXiv 2309.00071, eq. 22)."""

    def temperature(weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if block.has("attention_factor"):
        return block.number("attention_factor")
    # 0 is as good as absent here
    stated = [block.content.get(name) != 0 and block.has(name) for name in ("mscale", "mscale_all_dim")]
    if all(stated):
        return temperature(block.number("mscale")) / temperature(block.number("mscale_all_dim"))
    return temperature()
