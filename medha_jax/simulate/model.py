"""The sizes of a decoder-only model, from a `config.json`, without JAX.

`medha_jax.models.Architecture` reads the same file for the runtime; a test holds the two together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from medha_jax.config import BUNDLED_MODEL
from medha_jax.simulate.hardware import SpecError

FOLDER = "models"
TINY = "tiny"
# by architecture: biases of queries, keys and values; norms of queries and keys; biases that the config states
TRAITS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"stated_bias": True, "stated_mlp_bias": True},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {"qkv_bias": True},
    "Qwen3ForCausalLM": {"qk_norm": True, "stated_bias": True, "head_dim": 128},
}
SIZES = {
    "vocab": "vocab_size",
    "embed": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "context": "max_position_embeddings",
}


@dataclass(frozen=True)
class Model:
    """Sizes of a model; all are counts of elements. `context` is what its config states, in tokens."""

    name: str
    vocab: int
    embed: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool

    @property
    def parameters(self) -> int:
        """Of the whole model, e.g. 8.03e9 for Llama-3 8B."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        matrices = self.embed * (2 * queries + 2 * keys + 3 * self.ffn)
        biases = self.qkv_bias * (queries + 2 * keys) + self.output_bias * self.embed
        biases += self.mlp_bias * (2 * self.ffn + self.embed)
        norms = 2 * self.embed + self.qk_norm * 2 * self.head_dim
        ends = (1 if self.tied_embeddings else 2) * self.vocab * self.embed + self.embed
        return self.layers * (matrices + biases + norms) + ends

    def kv_bytes(self, itemsize: int) -> int:
        """Of one token in the whole model, e.g. 128 KiB for Llama-3 8B in bf16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize


def model_names() -> tuple[str, ...]:
    """The models whose sizes come with the package."""
    folder = resources.files("medha_jax.simulate").joinpath(FOLDER)
    found = (entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))
    return (*sorted(found), TINY)


def load_model(name: str) -> Model:
    """A model by name, or from a `config.json` or the directory that holds one.

    Raises:
        SpecError: there is no such model or file, or the file does not describe a model that the runtime computes.
    """
    if name == TINY:
        path = BUNDLED_MODEL / "config.json"
    elif name in model_names():
        text = resources.files("medha_jax.simulate").joinpath(FOLDER, f"{name}.json").read_text(encoding="utf-8")
        return model_from(json.loads(text), name)
    else:
        path = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(
            f"cannot read model {name!r} ({error.strerror}); give a config.json, its directory, or one of: "
            f"{', '.join(model_names())}"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid JSON: {error}") from None
    return model_from(config, name)


def model_from(config: Any, name: str) -> Model:
    """The sizes that a parsed `config.json` states.

    Raises:
        SpecError: the architecture is not supported, or a size is missing or not a whole number above 0.
    """
    if not isinstance(config, Mapping):
        raise SpecError(f"model {name!r}: config.json must be a mapping")
    names = config.get("architectures") or []
    traits = next((TRAITS[one] for one in names if one in TRAITS), None)
    if traits is None:
        raise SpecError(f"model {name!r}: architecture {names} is not supported; supported are {', '.join(TRAITS)}")
    sizes = {ours: _size(config, theirs) for ours, theirs in SIZES.items()}
    kv_heads = _size(config, "num_key_value_heads") if config.get("num_key_value_heads") else sizes["heads"]
    if sizes["heads"] % kv_heads:
        raise SpecError(f"num_attention_heads {sizes['heads']} is not a multiple of num_key_value_heads {kv_heads}")
    stated = config.get("head_dim") or traits.get("head_dim") or sizes["embed"] // sizes["heads"]
    bias = bool(traits.get("stated_bias") and config.get("attention_bias", False))
    return Model(
        name=name,
        kv_heads=kv_heads,
        head_dim=int(stated),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=bias or bool(traits.get("qkv_bias")),
        output_bias=bias,
        mlp_bias=bool(traits.get("stated_mlp_bias") and config.get("mlp_bias", False)),
        qk_norm=bool(traits.get("qk_norm")),
        **sizes,
    )


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SpecError(f"config.json: {name} is {value!r}; it must be a whole number above 0")
    return value
