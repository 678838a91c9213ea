"""The whole model on one device: `python -m benchmarks.model`.

A 26M-parameter Llama (width 512, 8 layers, 8 heads, 2 KV heads, FFN 1536, vocabulary 4096), random weights.
Expected limits: prefill is bound by the matmul rate (2 FLOP per weight and token, 4 * heads * head_dim FLOP per layer
and visible token). A single decode is bound by reading the weights once (in fp32, 105 MB with the head).
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.measure import copy_rate, machine, matmul_rate
from medha_jax.checkpoints import random_parameters
from medha_jax.checkpoints.export import write_huggingface
from medha_jax.config import BUNDLED_MODEL, Buckets, MeshConfig, RuntimeConfig
from medha_jax.mesh import build_mesh, parameter_sharding
from medha_jax.models import parameter_specs
from medha_jax.plan import Admission, Chunk, SamplingParams, StepPlan
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.executables import open_cache
from medha_jax.runtime.parameter_placement import place_parameters
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture
from medha_jax.specs.sizes import pages_for

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 1536,
    "max_position_embeddings": 65536,
    "tie_word_embeddings": True,
}
CHUNK = 1024
GREEDY = SamplingParams(temperature=0)


def open_runtime(arch: Architecture, slots: int, dtype: str) -> MeshExecutor:
    """A runtime with random weights and a pool for one 33K request or `slots` short ones."""
    mesh = build_mesh(Layout())
    buckets = Buckets(decode=(1, slots), prefill=(CHUNK,), chunks=1, slices=())
    config = RuntimeConfig(slots=slots, pool_tokens=33 * 1024, max_context=33 * 1024, mesh=MeshConfig(buckets=buckets))
    open_cache(config.compilation_cache, mesh.devices.flat[0].platform == "cpu", print)
    weights = place_parameters(random_weights(arch, mesh, dtype), arch, Layout(), mesh)
    return MeshExecutor(config, arch, weights, mesh, print)


def write_model(directory: Path, dtype: str = "float32") -> None:
    """Write the model as a Hugging Face directory, with the bundled model's tokenizer, which knows half of its ids."""
    weights = random_weights(Architecture.from_config(CONFIG), build_mesh(Layout()), dtype)
    write_huggingface(directory, {**CONFIG, "torch_dtype": dtype}, weights)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED_MODEL / name, directory)


def random_weights(arch: Architecture, mesh: jax.sharding.Mesh, dtype: str) -> dict[str, jax.Array]:
    """Random parameters on a mesh."""
    specs = parameter_specs(arch, dtype)
    shardings = {name: parameter_sharding(mesh, spec.axes) for name, spec in specs.items()}
    return random_parameters(arch, dtype, shardings, seed=0)


def prefill(executor: MeshExecutor, slot: int, tokens: int, first_page: int = 0) -> float:
    """Seconds to compute a prompt in chunks of CHUNK."""
    page = executor.config.mesh.page_size
    ids = np.random.default_rng(slot).integers(0, executor.vocab, tokens).tolist()
    executor.admit(Admission(slot, GREEDY, tokens))
    started = time.perf_counter()
    for start in range(0, tokens, CHUNK):
        end = min(start + CHUNK, tokens)
        first, past = pages_for(start, page), pages_for(end, page)
        pages = tuple(range(first_page + first, first_page + past))
        chunk = Chunk(slot, start, end - start, tuple(ids[start:end]), end == tokens, first, pages)
        executor.collect(executor.submit(StepPlan((chunk,))))
    return time.perf_counter() - started


def decode(executor: MeshExecutor, slots: int, context: int, steps: int) -> float:
    """Median seconds of a tick that decodes one token in each of `slots` prefilled slots."""
    page = executor.config.mesh.page_size
    share = pages_for(context + steps + 2, page)
    seconds = []
    for step in range(steps + 1):
        at = context + step
        pages = [(slot * share + at // page,) if at % page == 0 else () for slot in range(slots)]
        chunks = [Chunk(s, at, 1, None, True, at // page, pages[s]) for s in range(slots)]
        started = time.perf_counter()
        executor.collect(executor.submit(StepPlan(tuple(chunks))))
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:]))


def work(arch: Architecture, weights: int, tokens: int) -> float:
    """FLOP of a prompt: every weight of the blocks once per token, and causal attention."""
    return tokens * (2 * weights + 2 * tokens * arch.heads * arch.head_dim * arch.layers)


def main() -> None:
    """Print prefill rates over the matmul rate, and decode times over the time to read the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", type=int, default=32768, help="tokens of the longest prompt")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and products")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write the model for a server, and measure nothing")
    given = parser.parse_args()
    if given.write is not None:
        write_model(given.write, given.dtype)
        return
    long, dtype = given.long, given.dtype
    print(machine())
    arch = Architecture.from_config(CONFIG)
    specs = parameter_specs(arch, dtype)
    blocks = sum(math.prod(spec.shape) for name, spec in specs.items() if name.startswith("layers."))
    total = sum(spec.nbytes for spec in specs.values())
    print(f"{sum(math.prod(spec.shape) for spec in specs.values()) / 1e6:.1f}M parameters, {total / 1e6:.0f} MB")
    executor = open_runtime(arch, 32, dtype)
    prefill(executor, 0, CHUNK)
    for tokens in (8192, long):
        dense = matmul_rate(dtype)
        seconds = prefill(executor, 0, tokens)
        rate = work(arch, blocks, tokens) / seconds
        print(
            f"prefill {tokens:6d} tokens: {seconds:6.2f} s, {tokens / seconds:6.0f} tokens/s, "
            f"{rate / 1e9:.0f} GFLOP/s, {rate / dense:.2f} of dense {dtype} ({dense / 1e9:.0f})"
        )
    context, steps = 512, 64
    share = pages_for(context + steps + 2, executor.config.mesh.page_size)
    for slot in range(32):
        prefill(executor, slot, context, first_page=slot * share)
    rate = copy_rate()
    single = decode(executor, 1, context, steps)
    many = decode(executor, 32, context, steps)
    print(
        f"decode 1 at {context}: {single * 1e3:.1f} ms, {1 / single:.0f} tokens/s; reading the weights once at the "
        f"copy rate ({rate / 1e9:.1f} GB/s) takes {total / rate * 1e3:.1f} ms, ratio {single * rate / total:.2f}"
    )
    print(f"decode 32 at {context}: {many * 1e3:.1f} ms, {32 / many:.0f} tokens/s, {32 * single / many:.1f}x of one")
    print(f"peak resident memory {_peak_gib():.2f} GiB; devices {jax.device_count()}")


def _peak_gib() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
