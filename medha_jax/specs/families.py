"""What distinguishes the model families; `models/decoder.py` has what they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medha_jax.specs.config_values import ConfigValues

# of transformers' configuration classes, for a key that a file leaves out
WINDOW, FULL_LAYERS = 4096, 28


@dataclass(frozen=True)
class Family:
    """Fixed traits of one family of Hugging Face architectures.

    `slides` says which layers see only a window of the context where `config.json` states one: none, every one, or
    those that the file chooses.
    """

    name: str
    qkv_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None
    reads_attention_bias: bool = False
    reads_mlp_bias: bool = False
    slides: Literal["none", "every", "chosen"] = "none"

    def window(self, config: ConfigValues, layers: int) -> int | None:
        """Tokens of the sliding attention window, or None if none of the `layers` slides.

        Raises:
            ValueError: the layers are of unknown kinds, or slide without a window.
        """
        if self.slides == "none":
            return None
        if self.slides == "every":
            return _stated_window(config)
        window = _stated_window(config) if config.switch("use_sliding_window") else None
        kinds = config.texts("layer_types")
        if kinds is None:
            return window if config.whole("max_window_layers", FULL_LAYERS, least=0) < layers else None
        if len(kinds) != layers:
            raise ValueError(f"layer_types has {len(kinds)} entries; num_hidden_layers is {layers}")
        unknown = sorted({*kinds} - {"full_attention", "sliding_attention"})
        if unknown:
            raise ValueError(f"layer_types has {unknown[0]!r}; supported are 'full_attention' and 'sliding_attention'")
        if "sliding_attention" not in kinds:
            return None
        if window is None:
            raise ValueError("layer_types has 'sliding_attention', but use_sliding_window or sliding_window is off")
        return window


def _stated_window(config: ConfigValues) -> int | None:
    """`sliding_window`: here null is off, and absent is the default of transformers."""
    if "sliding_window" in config.content and not config.has("sliding_window"):
        return None
    return config.whole("sliding_window", WINDOW)


FAMILIES = {
    "LlamaForCausalLM": Family("llama", reads_attention_bias=True, reads_mlp_bias=True),
    "MistralForCausalLM": Family("mistral", slides="every"),
    "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True, slides="chosen"),
    "Qwen3ForCausalLM": Family("qwen3", qk_norm=True, head_dim=128, reads_attention_bias=True, slides="chosen"),
}
