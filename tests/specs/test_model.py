from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.specs.families import FAMILIES
from medha_jax.specs.model import Architecture, UnsupportedModelError
from medha_jax.specs.rope import KINDS, rotary_constants
from tests.small import CONFIG


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture not supported: GPT2LMHeadModel; supported are Llama"),
        ({"architectures": []}, "architecture not supported: none stated"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM'; it must be a list of texts"),
        ({"architectures": 5}, "architectures is 5; it must be a list of texts"),
        ({"model_type": "granite"}, "model_type 'granite' is not that of LlamaForCausalLM, 'llama'"),
        ({"vocab_size": None}, "config.json lacks 'vocab_size'"),
        ({"vocab_size": True}, "vocab_size is True; it must be a whole number"),
        ({"num_hidden_layers": 2.7}, "num_hidden_layers is 2.7; it must be a whole number"),
        ({"hidden_size": "64"}, "hidden_size is '64'; it must be a whole number"),
        ({"vocab_size": 10**30}, "it must be at least 1 and below 2^31"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; it must be true or false"),
        ({"attention_bias": 1}, "attention_bias is 1; it must be true or false"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; it must be from 1e-15 to 1e+15"),
        ({"is_causal": False}, "is_causal is false; only causal attention is supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not supported"),
        ({"quantization_config": {}}, "quantised weights are not supported"),
        ({"compression_config": {"format": "int"}}, "compression_config: quantised weights are not supported"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim 15 must be even"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"intermediate_size": "wide"}, "config.json: intermediate_size is 'wide'; it must be a whole number"),
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
    for text in ("[" * 100_000, '{"vocab_size": ' + "9" * 5000 + "}"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UnsupportedModelError, match="not valid JSON"):
            Architecture.from_directory(tmp_path)
    (tmp_path / "folder" / "config.json").mkdir(parents=True)
    with pytest.raises(UnsupportedModelError, match="cannot read .*config.json"):
        Architecture.from_directory(tmp_path / "folder")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert Architecture.from_directory(tmp_path) == Architecture.from_config(CONFIG)


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({}, 2048),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 8192),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 4096),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}}, 8192),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 2048),
    ],
)
def test_the_context_that_is_exact(changes: dict[str, Any], context: int) -> None:
    assert Architecture.from_config({**CONFIG, **changes}).context == context


@pytest.mark.parametrize(
    "name",
    ["quantization_config", "compression_config", "rms_norm_eps", "hidden_act", "rope_scaling", "sliding_window"],
)
def test_null_is_the_same_as_absent(name: str) -> None:
    assert Architecture.from_config({**CONFIG, name: None}) == Architecture.from_config(CONFIG)


@pytest.mark.parametrize("name", ["head_dim", "num_key_value_heads"])
def test_null_is_the_same_as_absent_where_a_size_follows_from_others(name: str) -> None:
    without = {key: value for key, value in CONFIG.items() if key != name}
    assert Architecture.from_config({**CONFIG, name: None}) == Architecture.from_config(without)


def test_other_words_for_the_same() -> None:
    whole = Architecture.from_config(CONFIG)
    assert Architecture.from_config({**CONFIG, "hidden_act": "swish", "vocab_size": 256.0}) == whole
    noted = Architecture.from_config({**CONFIG, "auto_map": {"AutoModel": "own.Model"}})
    assert noted == whole and noted.notes == ("config.json: auto_map names code of the model's own, which is not run",)


KEYS = [
    *CONFIG,
    *("hidden_act", "is_causal", "model_type", "quantization_config", "rms_norm_eps", "attention_bias", "mlp_bias"),
    *("tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"),
    *("partial_rotary_factor", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "auto_map"),
]
ROPE_KEYS = ["rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor"]
ROPE_KEYS += ["high_freq_factor", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", "attention_factor"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 4, 64, 2**31, 10**400])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([*KINDS, "silu", "full_attention", "sliding_attention", *FAMILIES])
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
VALUES = JSON | st.dictionaries(st.sampled_from(ROPE_KEYS), SCALARS, max_size=6)


@given(JSON | st.dictionaries(st.sampled_from(KEYS), VALUES), st.booleans(), st.sampled_from(sorted(FAMILIES)))
def test_any_json_is_a_model_or_one_error_of_ours(content: Any, completed: bool, architecture: str) -> None:
    """Also what is read fits the rules that are made of it."""
    if completed and isinstance(content, dict):
        content = {**CONFIG, "architectures": [architecture], **content}
    try:
        arch = Architecture.from_config(content)
    except UnsupportedModelError:
        return
    assert 1 <= arch.context < 2**31 and arch.parameters > 0
    if arch.head_dim < 1024:
        assert all(np.isfinite(value).all() for value in rotary_constants(arch.rope, arch.head_dim).values())


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
