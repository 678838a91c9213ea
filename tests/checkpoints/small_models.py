"""Small models of every family, their weights in the Hugging Face layout, and ways to compare arrays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from medha_jax.checkpoints import orbax
from medha_jax.specs.model import Architecture

ROOT = Path(__file__).parents[2]
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
VOCAB, EMBED, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 64, 32, 2, 4, 2, 8, 48
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": EMBED,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "intermediate_size": FFN,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SIZES | {"architectures": ["LlamaForCausalLM"], "attention_bias": True, "mlp_bias": True},
    "mistral": SIZES | {"architectures": ["MistralForCausalLM"]},
    "qwen2": SIZES | {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen3": SIZES | {"architectures": ["Qwen3ForCausalLM"]},
}


def architecture(family: str, **changes: Any) -> Architecture:
    return Architecture.from_config(CONFIGS[family] | changes)


def stored_shapes(family: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the transformers library writes them; spelled out, not taken from the table under test."""
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, EMBED),
        "model.norm.weight": (EMBED,),
    }
    if family != "qwen2":
        shapes["lm_head.weight"] = (VOCAB, EMBED)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes[at + "input_layernorm.weight"] = (EMBED,)
        shapes[at + "post_attention_layernorm.weight"] = (EMBED,)
        shapes[at + "self_attn.q_proj.weight"] = (queries, EMBED)
        shapes[at + "self_attn.k_proj.weight"] = (keys, EMBED)
        shapes[at + "self_attn.v_proj.weight"] = (keys, EMBED)
        shapes[at + "self_attn.o_proj.weight"] = (EMBED, queries)
        shapes[at + "mlp.gate_proj.weight"] = (FFN, EMBED)
        shapes[at + "mlp.up_proj.weight"] = (FFN, EMBED)
        shapes[at + "mlp.down_proj.weight"] = (EMBED, FFN)
        if family in ("llama", "qwen2"):
            shapes[at + "self_attn.q_proj.bias"] = (queries,)
            shapes[at + "self_attn.k_proj.bias"] = (keys,)
            shapes[at + "self_attn.v_proj.bias"] = (keys,)
        if family == "llama":
            shapes[at + "self_attn.o_proj.bias"] = (EMBED,)
            shapes[at + "mlp.gate_proj.bias"] = (FFN,)
            shapes[at + "mlp.up_proj.bias"] = (FFN,)
            shapes[at + "mlp.down_proj.bias"] = (EMBED,)
        if family == "qwen3":
            shapes[at + "self_attn.q_norm.weight"] = (HEAD_DIM,)
            shapes[at + "self_attn.k_norm.weight"] = (HEAD_DIM,)
    return shapes


def stored_tensors(family: str, dtype: str = "bfloat16", seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = stored_shapes(family)
    return {name: rng.standard_normal(shape, np.float32).astype(DTYPES[dtype]) for name, shape in shapes.items()}


def write_model(directory: Path, family: str, tensors: dict[str, np.ndarray] | None = None) -> Path:
    """A directory with one safetensors file, `config.json` and the files that conversion copies."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIGS[family]))
    for name in ("tokenizer", "tokenizer_config", "special_tokens_map"):
        (directory / f"{name}.json").write_text("{}")
    (directory / "generation_config.json").write_text('{"eos_token_id": 2}')
    (directory / "additional_chat_templates").mkdir(exist_ok=True)
    for template in ("chat_template.jinja", "additional_chat_templates/tool_use.jinja"):
        (directory / template).write_text(f"{{# {template} #}}")
    save_file(stored_tensors(family) if tensors is None else tensors, directory / "model.safetensors")
    return directory


def one_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def bits(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    """What two arrays must share to be identical: NaN payloads and the sign of zero count."""
    values = np.asarray(array)
    return values.dtype.name, values.shape, values.tobytes()


def same_bits(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(bits(left[name]) == bits(right[name]) for name in left)


def run_on_eight_devices(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own with eight CPU devices; the count is fixed once JAX has started."""
    # without optimisation the random number generators compile in a quarter of the time
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def save_orbax(destination: Path, source: Path, params: Mapping[str, Any]) -> None:
    """Write parameters of one dtype as the runtime's own directory."""
    leaves = {name: orbax.Leaf(value.shape, value.dtype, partial(np.asarray, value)) for name, value in params.items()}
    orbax.write(destination, source, leaves, next(iter(leaves.values())).dtype.name, lambda _: None)
