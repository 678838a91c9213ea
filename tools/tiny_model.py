"""The bundled model's architecture, its dense forward pass and its export to Hugging Face names."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from safetensors.numpy import save_file

from medha_jax.attention.rotate import rotate
from medha_jax.models import Decoder, layer_graph, rotary_angles
from medha_jax.specs.model import Architecture
from medha_jax.specs.rope import rotary_constants

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 288,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_hidden_layers": 8,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 2048,
}
GENERATION: dict[str, Any] = {
    "bos_token_id": 0,
    "eos_token_id": 0,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "repetition_penalty": 1.15,
}
# by path below `layers.`: the name in a Llama checkpoint, and the number of leading input axes
LLAMA_LAYER = {
    "attention.query.kernel": ("self_attn.q_proj", 1),
    "attention.key.kernel": ("self_attn.k_proj", 1),
    "attention.value.kernel": ("self_attn.v_proj", 1),
    "attention.output.kernel": ("self_attn.o_proj", 2),
    "mlp.gate.kernel": ("mlp.gate_proj", 1),
    "mlp.up.kernel": ("mlp.up_proj", 1),
    "mlp.down.kernel": ("mlp.down_proj", 1),
    "attention_norm.scale": ("input_layernorm", 0),
    "mlp_norm.scale": ("post_attention_layernorm", 0),
}
QUERY_CHUNK = 128
LOGIT_ROWS = 2048

Parameters = dict[str, Array]


def initial_parameters(arch: Architecture, seed: int) -> Parameters:
    """Initial fp32 parameters by dotted path; projections to the residual stream start at zero."""
    state = nnx.state(Decoder(arch, jnp.float32, nnx.Rngs(seed)), nnx.Param)
    flat = {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}
    silent = ("attention.output.kernel", "mlp.down.kernel")
    return {path: jnp.zeros_like(value) if path.endswith(silent) else value for path, value in flat.items()}


@partial(jax.checkpoint, static_argnums=3)
def _attend_chunk(
    query: Float[Array, "group chunk head_dim"],
    key: Float[Array, "seen head_dim"],
    value: Float[Array, "seen head_dim"],
    start: int,
) -> Float[Array, "group chunk head_dim"]:
    """Attention of the queries from `start` on of one KV head to all keys up to the chunk's last."""
    group, chunk, width = query.shape
    scores = query.reshape(-1, width) @ key.T
    visible = jnp.arange(key.shape[0])[None, :] <= start + jnp.tile(jnp.arange(chunk), group)[:, None]
    scores = jnp.where(visible, scores, -1e30)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    out = (weights @ value) / jnp.sum(weights, axis=-1, keepdims=True)
    return out.reshape(group, chunk, width)


def dense_attention(query: Array, key: Array, value: Array, length: int) -> Array:
    """Causal attention within consecutive sequences of `length` rows each.

    Args:
        query: `[rows, heads, head_dim]`; `rows` is a multiple of `length`.
        key: `[rows, kv_heads, head_dim]`.
        value: as `key`.
        length: tokens of a sequence.

    Returns:
        `[rows, heads, head_dim]`. One KV head of one sequence is computed at a time, in chunks of queries, so that the
        scores stay in the CPU's cache.
    """
    rows, heads, width = query.shape
    kv_heads = key.shape[1]
    group, size = heads // kv_heads, rows // length
    chunk = max(QUERY_CHUNK, length // 16)
    q = (query * width**-0.5).reshape(size, length, kv_heads, group, width)
    q = q.transpose(0, 2, 3, 1, 4).reshape(size * kv_heads, group, length, width)
    k, v = (x.reshape(size, length, kv_heads, width).transpose(0, 2, 1, 3) for x in (key, value))
    k, v = (x.reshape(size * kv_heads, length, width) for x in (k, v))

    def one(head: tuple[Array, Array, Array]) -> Array:
        q, k, v = head
        bounds = [(start, min(start + chunk, length)) for start in range(0, length, chunk)]
        return jnp.concatenate([_attend_chunk(q[:, a:b], k[:b], v[:b], a) for a, b in bounds], axis=1)

    out: Array = jax.lax.map(one, (q, k, v)).reshape(size, kv_heads, group, length, width)
    return out.transpose(0, 3, 1, 2, 4).reshape(rows, heads, width)


def token_losses(
    arch: Architecture,
    parameters: Parameters,
    tokens: Int[Array, "size length_and_one"],
    positions: Int[Array, "size length"] | None = None,
) -> Float[Array, "size length"]:
    """Cross-entropy of every next token, in nats.

    Args:
        tokens: windows of token ids; the last token of each is a target only.
        positions: rotary positions; None counts from 0.
    """
    size, length = tokens.shape[0], tokens.shape[1] - 1
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(length), (size, length))
    inputs, targets = tokens[:, :-1].reshape(-1), tokens[:, 1:].reshape(-1)
    where = positions.reshape(-1)
    angles = rotary_angles(rotary_constants(arch.rope, arch.head_dim), where, where + 1)
    merge = layer_graph(arch, jnp.float32)
    stacked = {p.removeprefix("layers."): x for p, x in parameters.items() if p.startswith("layers.")}

    def attend(cache: None, query: Array, key: Array, value: Array) -> tuple[Array, None]:
        return dense_attention(rotate(query, *angles), rotate(key, *angles), value, length), cache

    def step(x: Array, arrays: Parameters) -> tuple[Array, None]:
        (x,), cache = merge(arrays)((x,), None, attend)
        return x, cache

    embedding = parameters["embedding"]
    hidden, _ = jax.lax.scan(step, embedding[inputs], stacked)

    @jax.checkpoint
    def cross_entropy(block: tuple[Array, Array]) -> Array:
        hidden, targets = block
        mean_square = jnp.mean(hidden * hidden, axis=-1, keepdims=True)
        normal = parameters["norm.scale"] * hidden * jax.lax.rsqrt(mean_square + arch.norm_epsilon)
        logits = normal @ embedding.T
        return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]

    rows = size * length if size * length % LOGIT_ROWS else LOGIT_ROWS
    losses: Array = jax.lax.map(cross_entropy, (hidden.reshape(-1, rows, arch.embed), targets.reshape(-1, rows)))
    return losses.reshape(size, length)


def llama_tensors(parameters: Parameters) -> dict[str, np.ndarray]:
    """The parameters in bfloat16 under the names of a Llama checkpoint, matrices as `[out, in]`."""
    tensors = {
        "model.embed_tokens.weight": parameters["embedding"],
        "model.norm.weight": parameters["norm.scale"],
    }
    for path, (name, inputs) in LLAMA_LAYER.items():
        for index, array in enumerate(parameters[f"layers.{path}"]):
            width = int(np.prod(array.shape[:inputs]))
            matrix = array.reshape(width, -1).T if inputs else array
            tensors[f"model.layers.{index}.{name}.weight"] = matrix
    rounded = {name: np.asarray(x).astype(ml_dtypes.bfloat16) for name, x in tensors.items()}
    return {name: np.ascontiguousarray(x) for name, x in rounded.items()}


def export(parameters: Parameters, directory: Path) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors` in Hugging Face's form."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in (("config.json", CONFIG), ("generation_config.json", GENERATION)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    weights = directory / "model.safetensors"
    save_file(llama_tensors(parameters), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # save_file makes it readable by the owner only; an installed package needs more
