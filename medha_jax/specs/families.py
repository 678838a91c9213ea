"""What sets the model families apart; everything that they share stands in `models/decoder.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """Fixed traits of one family of Hugging Face architectures."""

    name: str
    qkv_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None
    reads_attention_bias: bool = False
    reads_mlp_bias: bool = False
    window_switch: str | None = None

    def window(self, config: Mapping[str, Any]) -> int | None:
        """Tokens of a sliding attention window that the config turns on, or None."""
        if self.window_switch is not None and not config.get(self.window_switch, False):
            return None
        return config.get("sliding_window")


FAMILIES = {
    "LlamaForCausalLM": Family("llama", reads_attention_bias=True, reads_mlp_bias=True),
    "MistralForCausalLM": Family("mistral"),
    "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True, window_switch="use_sliding_window"),
    "Qwen3ForCausalLM": Family(
        "qwen3", qk_norm=True, head_dim=128, reads_attention_bias=True, window_switch="use_sliding_window"
    ),
}
