from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medha_jax.specs.model import Architecture, UnsupportedModelError
from tests.small import CONFIG


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture not supported: GPT2LMHeadModel; supported are Llama"),
        ({"architectures": []}, "architecture not supported: none stated"),
        ({"vocab_size": None}, "config.json"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not supported"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim 15 must be even"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"intermediate_size": "wide"}, "config.json: invalid literal"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "RoPE type 'longrope' is not supported; supported are default"),
        ({"rope_scaling": {"rope_type": "linear"}}, "RoPE type 'linear' needs `factor`"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "RoPE type 'llama3' needs `high_freq_factor`"),
    ],
)
def test_what_cannot_be_computed_exactly_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        Architecture.from_config({**CONFIG, **changes})
    assert message in str(caught.value)


def test_a_missing_setting_is_named() -> None:
    config = {k: v for k, v in CONFIG.items() if k != "intermediate_size"}
    with pytest.raises(UnsupportedModelError, match="config.json lacks 'intermediate_size'"):
        Architecture.from_config(config)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no config.json"):
        Architecture.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModelError, match="not valid JSON"):
        Architecture.from_directory(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert Architecture.from_directory(tmp_path) == Architecture.from_config(CONFIG)


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({}, 2048),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 512}, 512),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, 2048),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 512, "use_sliding_window": False}, 2048),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 512, "use_sliding_window": True}, 512),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 8192),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 4096),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}}, 8192),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 2048),
    ],
)
def test_the_context_that_is_exact(changes: dict[str, Any], context: int) -> None:
    assert Architecture.from_config({**CONFIG, **changes}).context == context


def test_what_sets_the_families_apart() -> None:
    def read(name: str, **changes: Any) -> Architecture:
        return Architecture.from_config({**CONFIG, "architectures": [f"{name}ForCausalLM"], **changes})

    assert read("Llama").queries_per_kv == 2
    assert read("Llama", attention_bias=True).output_bias
    assert not read("Mistral", attention_bias=True).qkv_bias
    assert read("Qwen2").qkv_bias
    assert not read("Qwen2").output_bias
    assert read("Qwen3").qk_norm
    without = {k: v for k, v in CONFIG.items() if k != "head_dim"}
    assert Architecture.from_config({**without, "architectures": ["Qwen3ForCausalLM"]}).head_dim == 128
    assert Architecture.from_config(without).head_dim == 16
