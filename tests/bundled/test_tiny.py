"""The bundled model: small enough to ship, laid out as Hugging Face expects, and trained."""

import json
import math
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer

import medha_jax
from medha_jax.models import parameter_specs
from medha_jax.specs.model import Architecture
from tools.tiny_model import LLAMA_LAYER, LOGIT_ROWS, dense_attention, token_losses

DIRECTORY = Path(medha_jax.__file__).parent / "bundled" / "tiny"
CODE = '''"""Small helpers for reading files."""

import os


class Reader:
    """Read the lines of a file."""

    def __init__(self, path, encoding="utf-8"):
        self.path = path
        self.encoding = encoding
        self.lines = []

    def read(self):
        if not os.path.exists(self.path):
            raise FileNotFoundError(self.path)
        with open(self.path, encoding=self.encoding) as file:
            for line in file:
                self.lines.append(line.rstrip())
        return self.lines

    def __len__(self):
        return len(self.lines)


if __name__ == "__main__":
    main()
'''


@pytest.fixture(scope="module")
def config():
    return json.loads((DIRECTORY / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def arch():
    return Architecture.from_directory(DIRECTORY)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(DIRECTORY / "tokenizer.json"))


def llama_shapes(config):
    """Every tensor of a Llama checkpoint with tied embeddings, as transformers names and shapes it."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        shapes |= {
            layer + "self_attn.q_proj.weight": (queries, hidden),
            layer + "self_attn.k_proj.weight": (keys, hidden),
            layer + "self_attn.v_proj.weight": (keys, hidden),
            layer + "self_attn.o_proj.weight": (hidden, queries),
            layer + "mlp.gate_proj.weight": (ffn, hidden),
            layer + "mlp.up_proj.weight": (ffn, hidden),
            layer + "mlp.down_proj.weight": (hidden, ffn),
            layer + "input_layernorm.weight": (hidden,),
            layer + "post_attention_layernorm.weight": (hidden,),
        }
    return shapes


def read_parameters(arch):
    """The weights in fp32 under this project's paths; reads the file on its own, not through the loader."""
    with safe_open(DIRECTORY / "model.safetensors", framework="flax") as file:
        tensors = {name: np.asarray(file.get_tensor(name).astype(jnp.float32)) for name in file.keys()}  # noqa: SIM118
    specs = parameter_specs(arch, jnp.float32)
    parameters = {
        "embedding": tensors["model.embed_tokens.weight"],
        "norm.scale": tensors["model.norm.weight"],
    }
    for path, (name, _) in LLAMA_LAYER.items():
        stack = np.stack([tensors[f"model.layers.{i}.{name}.weight"].T for i in range(arch.layers)])
        parameters[f"layers.{path}"] = stack.reshape(specs[f"layers.{path}"].shape)
    assert {path: x.shape for path, x in parameters.items()} == {path: s.shape for path, s in specs.items()}
    return {path: jnp.asarray(x) for path, x in parameters.items()}


def test_directory_is_small_and_complete():
    names = {path.name for path in DIRECTORY.iterdir()}
    tables = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names == tables | {"model.safetensors", "README.md"}
    assert sum(path.stat().st_size for path in DIRECTORY.rglob("*") if path.is_file()) <= 8_000_000


def test_config_describes_a_llama_that_the_runtime_reads(arch):
    assert arch.family == "llama"
    assert (arch.vocab, arch.embed, arch.layers, arch.ffn) == (2048, 256, 8, 288)
    assert (arch.heads, arch.kv_heads, arch.head_dim) == (8, 4, 32)
    assert arch.tied_embeddings and arch.context == 131072


def test_tensors_are_those_of_a_llama_checkpoint(config):
    raw = (DIRECTORY / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    assert {name: tuple(entry["shape"]) for name, entry in header.items()} == llama_shapes(config)


def test_vocabulary_and_special_token_agree_with_the_config(config, tokenizer):
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    generation = json.loads((DIRECTORY / "generation_config.json").read_text(encoding="utf-8"))
    end = tokenizer.token_to_id("<|endoftext|>")
    assert end == config["eos_token_id"] == config["bos_token_id"] == 0
    assert generation["eos_token_id"] == generation["bos_token_id"] == end


@given(st.text(max_size=200))
def test_any_text_round_trips_and_gains_no_special_token(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert 0 not in ids or "<|endoftext|>" in text


def test_code_scores_far_below_uniform(arch, tokenizer):
    parameters = read_parameters(arch)
    ids = np.array([[0, *tokenizer.encode(CODE).ids]], dtype=np.int32)
    losses = jax.jit(lambda parameters, ids: token_losses(arch, parameters, ids))(parameters, ids)
    assert losses.shape == (1, ids.shape[1] - 1)
    assert float(losses.mean()) < 0.5 * math.log(arch.vocab)


def test_shuffled_code_scores_much_worse(arch, tokenizer):
    parameters = read_parameters(arch)
    ids = np.array(tokenizer.encode(CODE).ids, dtype=np.int32)
    shuffled = np.random.default_rng(0).permutation(ids)
    score = jax.jit(lambda ids: token_losses(arch, parameters, ids).mean())
    assert float(score(shuffled[None])) > float(score(ids[None])) + 1.0


def test_dense_attention_is_causal_softmax_over_grouped_heads():
    random = np.random.default_rng(0)
    size, length, heads, kv_heads, width = 2, 200, 4, 2, 8
    query = random.standard_normal((size, length, heads, width))
    key, value = random.standard_normal((2, size, length, kv_heads, width))
    wide_key, wide_value = (np.repeat(x, heads // kv_heads, axis=2) for x in (key, value))
    scores = np.einsum("bthd,bshd->bhts", query, wide_key) / math.sqrt(width)
    scores = np.where(np.tril(np.ones((length, length), dtype=bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = np.einsum("bhts,bshd->bthd", weights, wide_value).reshape(-1, heads, width)
    rows = [jnp.asarray(x, jnp.float32).reshape(-1, *x.shape[2:]) for x in (query, key, value)]
    np.testing.assert_allclose(dense_attention(rows[0], rows[1], rows[2], length), expected, atol=1e-5)


def test_loss_does_not_depend_on_how_rows_are_blocked(arch):
    """More rows than one block of logits give the same losses as one window at a time."""
    parameters = read_parameters(arch)
    windows = np.random.default_rng(0).integers(0, arch.vocab, (8, LOGIT_ROWS // 4 + 1), dtype=np.int32)
    score = jax.jit(lambda parameters, windows: token_losses(arch, parameters, windows))
    together = score(parameters, windows)
    alone = [score(parameters, window[None])[0] for window in windows]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-3)
