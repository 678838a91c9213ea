"""The least that a model's ticks compute and read, counted from its sizes."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from medha_jax.models import parameter_specs
from medha_jax.specs.model import Architecture

LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "rope_theta": 500000.0,
    "max_position_embeddings": 2**20,  # sizes of Llama-3, with a longer context for the measurement
}


@dataclass(frozen=True)
class Counts:
    """Sizes of a model on one device.

    Args:
        blocks: parameters of all layers, each used once per token.
        head: parameters of the head, used once per sampled token.
        attention: FLOP of one token's attention to one token: `4 * layers * heads * head_dim`.
        kv_bytes: bytes of one token in the pool.
        weight_bytes: bytes of one parameter.
    """

    blocks: int
    head: int
    attention: int
    kv_bytes: int
    weight_bytes: int

    @classmethod
    def of(cls, arch: Architecture, dtype: str, fp8: bool) -> Counts:
        """Count a model. An eight-bit pool has one byte per value, and one per token and head."""
        specs, size = parameter_specs(arch, dtype), jnp.dtype(dtype).itemsize
        blocks = sum(spec.nbytes for name, spec in specs.items() if name.startswith("layers.")) // size
        row = arch.head_dim + 1 if fp8 else arch.head_dim * size
        attention = 4 * arch.layers * arch.heads * arch.head_dim
        return cls(blocks, arch.vocab * arch.embed, attention, 2 * arch.layers * arch.kv_heads * row, size)

    def prefill_flops(self, tokens: int) -> int:
        """FLOP of a prompt: all tokens through the blocks, causal attention, and the head once."""
        return 2 * self.blocks * tokens + self.attention * tokens * (tokens + 1) // 2 + 2 * self.head

    def decode_bytes(self, context: int, batch: int) -> int:
        """Least bytes that a tick of decodes reads: the weights once, and every request's KV once.

        The embedding is left out: only one row per request is read.
        """
        return self.weight_bytes * (self.blocks + self.head) + self.kv_bytes * context * batch
