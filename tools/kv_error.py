"""The error of an eight-bit KV cache: `python -m tools.kv_error`.

It compares eight-bit KV with KV of the model's dtype, by the bundled model's loss on held-out Python source and by the
logits of models with random weights. Every figure is from the real runtime: a prompt in chunks, then one token at a
time with the text's own next token. So every position is computed from cached KV.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medha_jax.checkpoints import load_parameters, random_parameters
from medha_jax.config import BUNDLED_MODEL, Buckets, MeshConfig, RuntimeConfig
from medha_jax.engine import GenerationRequest, OfflineEngine
from medha_jax.mesh import build_mesh
from medha_jax.plan import SamplingParams, TokenResult
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.parameter_placement import place_parameters
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture
from medha_jax.text import Tokenizer
from tools.tiny_corpus import documents, split, standard_library

PROMPT, STEPS = 3072, 512
GREEDY = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
RANDOM: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 8192,
}


def open_runtime(arch: Architecture, parameters: Any, config: RuntimeConfig) -> MeshExecutor:
    """A runtime on one device that returns logits."""
    layout = Layout()
    mesh = build_mesh(layout)
    placed = place_parameters(dict(parameters), arch, layout, mesh)
    return MeshExecutor(config, arch, placed, mesh, lambda line: None)


def teacher_forced(executor: MeshExecutor, ids: tuple[int, ...]) -> np.ndarray:
    """Logits `[STEPS, vocab]` of the last positions of a text, each computed as a chunk of one token."""
    rows: list[np.ndarray] = []

    def keep(number: int, result: TokenResult) -> None:
        rows.append(np.array(result.logits))

    chunks = (1024,) * (len(ids[:-STEPS]) // 1024) + (1,)
    engine = OfflineEngine(executor, Tokenizer.from_directory(BUNDLED_MODEL), time.perf_counter, keep)
    engine.add(GenerationRequest(ids, GREEDY, chunks=chunks))
    while engine.busy:
        engine.step()
    return np.stack(rows[-STEPS:])


def losses(logits: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Negative natural log-probability of every next token."""
    wide = logits.astype(np.float64)
    top = wide.max(-1, keepdims=True)
    total = np.log(np.exp(wide - top).sum(-1)) + top[:, 0]
    lost: np.ndarray = total - wide[np.arange(len(wanted)), wanted]
    return lost


def settings() -> RuntimeConfig:
    """A configuration with shapes for the texts."""
    mesh = MeshConfig(buckets=Buckets(decode=(1,), prefill=(1024,), chunks=1, slices=()))
    return RuntimeConfig(
        max_context=PROMPT + STEPS + 64,
        pool_tokens=PROMPT + STEPS + 128,
        slots=1,
        mesh=mesh,
        keep_logits=True,
        compilation_cache=None,
    )


def texts(tokenizer: Tokenizer, count: int) -> list[tuple[int, ...]]:
    """Token ids of the longest held-out files of the standard library."""
    _, held_out = split(list(documents(standard_library())))
    longest = sorted(held_out, key=lambda document: -document.nbytes)
    ids = (tuple(tokenizer.encode(document.text)[: PROMPT + STEPS + 1]) for document in longest)
    return [one for one in itertools.islice(ids, count) if len(one) == PROMPT + STEPS + 1]


def bundled(count: int) -> None:
    """Print the bundled model's loss in fp32, and its change with bfloat16 and eight-bit KV."""
    arch = Architecture.from_directory(BUNDLED_MODEL)
    found = texts(Tokenizer.from_directory(BUNDLED_MODEL), count)
    print(f"bundled model, {len(found)} held-out texts, {STEPS} positions each after {PROMPT} tokens")
    first: np.ndarray | None = None
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for dtype in ("float32", "bfloat16"):
        parameters = load_parameters(BUNDLED_MODEL, arch, jnp.dtype(dtype), one)
        for kv_dtype in ("auto", "fp8"):
            executor = open_runtime(arch, parameters, replace(settings(), kv_dtype=kv_dtype))
            loss = np.concatenate([losses(teacher_forced(executor, i[:-1]), np.array(i[-STEPS:])) for i in found])
            first = loss if first is None else first
            change = loss - first
            spread = change.std() / np.sqrt(len(change))
            kind = "e4m3" if kv_dtype == "fp8" else dtype
            print(
                f"  model {dtype}, KV {kind}: loss {loss.mean():.5f} ({change.mean():+.5f} ± {spread:.5f}), "
                f"mean |change| a position {np.abs(change).mean():.5f}",
                flush=True,
            )


def random_models() -> None:
    """Print the relative error of random models' logits with bfloat16 and eight-bit KV."""
    ids = tuple(np.random.default_rng(0).integers(0, RANDOM["vocab_size"], PROMPT + STEPS).tolist())
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    print(f"random models, {STEPS} positions after {PROMPT} tokens: |logits - fp32's| / |fp32's|")
    for head_dim in (64, 128):
        arch = Architecture.from_config({**RANDOM, "hidden_size": 8 * head_dim, "head_dim": head_dim})
        parameters = random_parameters(arch, "float32", one, seed=0)
        wide = {name: np.asarray(value) * (3 if value.ndim > 2 else 1) for name, value in parameters.items()}
        results = {}
        for dtype, kv_dtype in (("float32", "auto"), ("float32", "fp8"), ("bfloat16", "auto"), ("bfloat16", "fp8")):
            cast = {name: jnp.asarray(value, dtype) for name, value in wide.items()}
            executor = open_runtime(arch, cast, replace(settings(), kv_dtype=kv_dtype))
            results[dtype, kv_dtype] = teacher_forced(executor, ids)
        exact = results["float32", "auto"]
        for (dtype, kv_dtype), logits in results.items():
            error = np.linalg.norm(logits - exact) / np.linalg.norm(exact)
            agree = np.mean(logits.argmax(-1) == exact.argmax(-1))
            kind = "e4m3" if kv_dtype == "fp8" else dtype
            print(f"  head_dim {head_dim}, model {dtype}, KV {kind}: {error:.4f}, same first choice {agree:.1%}")


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=4, help="held-out texts")
    bundled(parser.parse_args().texts)
    random_models()


if __name__ == "__main__":
    main()
