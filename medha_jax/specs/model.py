"""A decoder-only model's `config.json`, checked and made explicit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medha_jax.specs.config_values import LARGEST, ConfigValues, shown
from medha_jax.specs.families import FAMILIES, Family
from medha_jax.specs.rope import RopeScaling
from medha_jax.specs.rope_config import read_rope


class UnsupportedModelError(ValueError):
    """This runtime cannot compute the described model exactly."""


@dataclass(frozen=True)
class Architecture:
    """Sizes and switches of one decoder-only transformer; sizes are counts of elements.

    `context` is the number of positions, in tokens, for which the computation is exact. `notes` are warnings about the
    file, a line each.
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
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)

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
        except OSError as error:
            raise UnsupportedModelError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of thousands of digits
            raise UnsupportedModelError(f"{path} is not valid JSON: {error}") from None
        return cls.from_config(config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """Read a parsed `config.json`. Null is the same as absent.

        Raises:
            UnsupportedModelError: names the architecture or setting that is unsupported, missing or of a wrong type.
        """
        if not isinstance(config, Mapping):
            raise UnsupportedModelError("config.json must be a mapping")
        values = ConfigValues(config)
        try:
            return cls._read(_family(values), values)
        except KeyError as error:
            raise UnsupportedModelError(f"config.json lacks {error.args[0]!r}") from None
        except UnsupportedModelError:
            raise
        except ValueError as error:
            raise UnsupportedModelError(f"config.json: {error}") from None

    @classmethod
    def _read(cls, family: Family, config: ConfigValues) -> Architecture:
        _refuse_unsupported(config)
        heads, embed = config.whole("num_attention_heads"), config.whole("hidden_size")
        layers, kv_heads = config.whole("num_hidden_layers"), config.whole("num_key_value_heads", heads)
        head_dim = config.whole("head_dim", family.head_dim or max(1, embed // heads))
        if heads % kv_heads:
            raise ValueError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        if head_dim < 4 or head_dim % 2:
            raise ValueError(f"head_dim {head_dim} must be even and at least 4")
        rope, notes = read_rope(config)
        context = rope.extended_context(config.whole("max_position_embeddings"))
        if context > LARGEST:
            raise ValueError(f"RoPE makes {context} positions usable; supported are {LARGEST}")
        window = family.window(config, layers)
        if window is not None and window < context:
            # inside the window, sliding and full attention are equal
            notes.append(f"config.json: layers see {window:,} tokens (sliding_window), so the context is {window:,}")
            context = window
        if config.has("auto_map"):
            notes.append("config.json: auto_map names code of the model's own, which is not run")
        bias = config.switch("attention_bias") if family.reads_attention_bias else False
        return cls(
            family=family.name,
            vocab=config.whole("vocab_size"),
            embed=embed,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=config.whole("intermediate_size"),
            context=context,
            norm_epsilon=config.number("rms_norm_eps", 1e-6),
            rope=rope,
            tied_embeddings=config.switch("tie_word_embeddings"),
            qkv_bias=bias or family.qkv_bias,
            output_bias=bias,
            mlp_bias=config.switch("mlp_bias") if family.reads_mlp_bias else False,
            qk_norm=family.qk_norm,
            notes=tuple(notes),
        )


def _family(config: ConfigValues) -> Family:
    """The first supported architecture that the file names, which must be that of its model type."""
    names = config.texts("architectures") or []
    name = next((name for name in names if name in FAMILIES), None)
    if name is None:
        stated = ", ".join(names) or "none stated"
        raise UnsupportedModelError(f"architecture not supported: {stated}; supported are {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    kind = config.text("model_type", family.name)
    if kind != family.name:
        raise ValueError(f"model_type {shown(kind)} is not that of {name}, {family.name!r}")
    return family


def _refuse_unsupported(config: ConfigValues) -> None:
    """Refuse what transformers acts on for these architectures, and this runtime does not compute."""
    if (activation := config.text("hidden_act", "silu")) not in ("silu", "swish"):
        raise ValueError(f"hidden_act {shown(activation)} is not supported; supported is 'silu'")
    for name in ("quantization_config", "compression_config"):
        if config.has(name):
            raise ValueError(f"{name}: quantised weights are not supported; use bf16, fp16 or fp32 weights")
    if not config.switch("is_causal", True):
        raise ValueError("is_causal is false; only causal attention is supported")
