"""What distinguishes the model families; `models/decoder.py` has what they share."""

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
        """Tokens of the sliding attention window, or None if the config has none or turns it off."""
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
