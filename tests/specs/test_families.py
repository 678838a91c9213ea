from __future__ import annotations

from typing import Any

import pytest

from medha_jax.specs.model import Architecture, UnsupportedModelError
from tests.small import CONFIG

LLAMA, MISTRAL, QWEN2, QWEN3 = (f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2", "Qwen3"))
WHOLE, LAYERS = 8192, 8
ON = {"use_sliding_window": True, "sliding_window": 512}
FULL, SLIDING = "full_attention", "sliding_attention"


def read(name: str, **changes: Any) -> Architecture:
    sizes = {"architectures": [name], "max_position_embeddings": WHOLE, "num_hidden_layers": LAYERS}
    return Architecture.from_config({**CONFIG, **sizes, **changes})


@pytest.mark.parametrize(
    ("name", "changes", "context"),
    [
        (LLAMA, ON, WHOLE),
        (LLAMA, {**ON, "layer_types": [SLIDING] * LAYERS}, WHOLE),
        (MISTRAL, {"sliding_window": 512}, 512),
        (MISTRAL, {"sliding_window": None}, WHOLE),
        (MISTRAL, {"sliding_window": 10 * WHOLE}, WHOLE),
        (MISTRAL, {}, 4096),  # the default of transformers
        (QWEN2, {}, WHOLE),
        (QWEN2, {"sliding_window": 512}, WHOLE),
        (QWEN2, {**ON, "use_sliding_window": False, "max_window_layers": 0}, WHOLE),
        (QWEN2, ON, WHOLE),  # from layer 28 on
        (QWEN2, {**ON, "max_window_layers": LAYERS}, WHOLE),
        (QWEN2, {**ON, "max_window_layers": LAYERS - 1}, 512),
        (QWEN2, {"use_sliding_window": True, "max_window_layers": 0}, 4096),
        (QWEN2, {**ON, "sliding_window": None, "max_window_layers": 0}, WHOLE),
        (QWEN3, {**ON, "max_window_layers": 0, "layer_types": [FULL] * LAYERS}, WHOLE),
        (QWEN3, {**ON, "layer_types": [FULL, SLIDING] * (LAYERS // 2)}, 512),
    ],
)
def test_the_window_cuts_the_context_only_where_a_layer_slides(
    name: str, changes: dict[str, Any], context: int
) -> None:
    arch = read(name, **changes)
    cut = f"config.json: layers see {context:,} tokens (sliding_window), so the context is {context:,}"
    assert arch.context == context and arch.notes == (() if context == WHOLE else (cut,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": [FULL]}, "layer_types has 1 entries; num_hidden_layers is 8"),
        ({"layer_types": ["linear_attention"] * LAYERS}, "layer_types has 'linear_attention'; supported are"),
        ({"layer_types": [SLIDING] * LAYERS}, "layer_types has 'sliding_attention', but use_sliding_window"),
        ({"layer_types": FULL}, "layer_types is 'full_attention'; it must be a list of texts"),
        ({**ON, "sliding_window": -1}, "sliding_window is -1; it must be at least 1"),
        ({"use_sliding_window": "false"}, "use_sliding_window is 'false'; it must be true or false"),
    ],
)
def test_layers_that_cannot_be_understood_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        read(QWEN3, **changes)
    assert message in str(caught.value)
