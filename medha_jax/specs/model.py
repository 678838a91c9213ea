"""A decoder-only model's `config.json`, checked and made explicit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medha_jax.specs.families import FAMILIES, Family
from medha_jax.specs.rope import RopeScaling


class UnsupportedModelError(ValueError):
    """This runtime cannot compute the described model exactly."""


@dataclass(frozen=True)
class Architecture:
    """Sizes and switches of one decoder-only transformer; sizes are counts of elements.

    `context` is the number of positions, in tokens, for which the computation is exact.
    """

    family: str
    vocab: int
    embed: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    norm_epsilon: float
    rope: RopeScaling
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool

    @property
    def queries_per_kv(self) -> int:
        """Query heads that share one KV head, e.g. 4 for 32 heads over 8 KV heads."""
        return self.heads // self.kv_heads

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, e.g. 8.03e9 for Llama-3 8B."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        matrices = self.embed * (2 * queries + 2 * keys + 3 * self.ffn)
        biases = self.qkv_bias * (queries + 2 * keys) + self.output_bias * self.embed
        biases += self.mlp_bias * (2 * self.ffn + self.embed)
        norms = 2 * self.embed + self.qk_norm * 2 * self.head_dim
        ends = (1 if self.tied_embeddings else 2) * self.vocab * self.embed + self.embed
        return self.layers * (matrices + biases + norms) + ends

    @classmethod
    def from_directory(cls, directory: Path) -> Architecture:
        """Read `config.json` of a Hugging Face model directory (or the file itself)."""
        path = directory / "config.json" if directory.is_dir() else directory
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UnsupportedModelError(f"no config.json in {directory}") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UnsupportedModelError(f"{path} is not valid JSON: {error}") from None
        return cls.from_config(config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """Read a parsed `config.json`.

        Raises:
            UnsupportedModelError: names the architecture or setting that is unsupported or missing.
        """
        if not isinstance(config, Mapping):
            raise UnsupportedModelError("config.json must be a mapping")
        names = list(map(str, config.get("architectures") or []))
        family = next((FAMILIES[name] for name in names if name in FAMILIES), None)
        if family is None:
            stated = ", ".join(names) or "none stated"
            raise UnsupportedModelError(f"architecture not supported: {stated}; supported are {', '.join(FAMILIES)}")
        try:
            return cls._read(family, config)
        except KeyError as error:
            raise UnsupportedModelError(f"config.json lacks {error.args[0]!r}") from None
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            raise UnsupportedModelError(f"config.json: {error}") from None

    @classmethod
    def _read(cls, family: Family, config: Mapping[str, Any]) -> Architecture:
        if (activation := config.get("hidden_act", "silu")) != "silu":
            raise ValueError(f"hidden_act {activation!r} is not supported; supported is 'silu'")
        if "quantization_config" in config:
            raise ValueError("quantised weights are not supported; use bf16, fp16 or fp32 weights")
        heads, embed = int(config["num_attention_heads"]), int(config["hidden_size"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or family.head_dim or embed // heads)
        sizes = {
            "vocab_size": int(config["vocab_size"]),
            "hidden_size": embed,
            "num_hidden_layers": int(config["num_hidden_layers"]),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": int(config["intermediate_size"]),
            "max_position_embeddings": int(config["max_position_embeddings"]),
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1")
        if heads % kv_heads:
            raise ValueError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        if head_dim < 4 or head_dim % 2:
            raise ValueError(f"head_dim {head_dim} must be even and at least 4")
        rope = RopeScaling.from_config(config)
        context = rope.extended_context(sizes["max_position_embeddings"])
        if window := family.window(config):
            # inside the window, sliding and full attention are equal
            context = min(context, int(window))
        bias = bool(config.get("attention_bias", False)) if family.reads_attention_bias else False
        return cls(
            family=family.name,
            vocab=sizes["vocab_size"],
            embed=embed,
            layers=sizes["num_hidden_layers"],
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=sizes["intermediate_size"],
            context=context,
            norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
            rope=rope,
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=bias or family.qkv_bias,
            output_bias=bias,
            mlp_bias=bool(config.get("mlp_bias", False)) and family.reads_mlp_bias,
            qk_norm=family.qk_norm,
        )
