"""The whole model on one GPU: `python -m benchmarks.gpu.model`.

It runs the real runtime with Llama-3 8B's sizes and random bfloat16 weights. It measures a prompt of 128K tokens in
chunks against the rate of matrix products, and one decode at 512K against the time to read weights and KV once at the
copy rate. 64 decodes go through the engine, and the same ticks are dispatched without waiting: the difference is the
device's idle time. The ceilings are measured in the same run. `--small` is a trial with a tiny model on any machine;
its figures mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.gpu.attention import Row
from benchmarks.gpu.ceilings import Ceilings, measure_ceilings
from benchmarks.gpu.counts import LLAMA_3_8B, Counts
from benchmarks.gpu.device import NO_GPU, facts
from medha_jax.attention.gpu.launch import GpuTarget, LaunchError
from medha_jax.checkpoints import random_parameters
from medha_jax.config import ATTENTIONS, BUNDLED_MODEL, KV_DTYPES, XLA_OPTIONS, Buckets, MeshConfig, RuntimeConfig
from medha_jax.engine import Completed, GenerationRequest, NewTokens, OfflineEngine
from medha_jax.mesh import build_mesh, parameter_sharding
from medha_jax.models import parameter_specs
from medha_jax.plan import Admission, Chunk, SamplingParams, StepPlan
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.parameter_placement import place_parameters
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture
from medha_jax.specs.sizes import pages_for, with_gpu_rows
from medha_jax.text import Tokenizer

DTYPE = "bfloat16"
GREEDY = SamplingParams(temperature=0)
WORKSPACE = 4 * 2**30  # bytes left for programs beside weights and pool
WARM = 4  # ticks before the clock starts


@dataclass(frozen=True)
class Sizes:
    """A model (`config` as in `config.json`) and the loads to measure, in tokens."""

    config: dict[str, Any]
    prompt: int
    chunk: int
    long: int
    batch: int
    short: int
    steps: int
    page: int

    @property
    def pool(self) -> int:
        """Tokens for the largest load, so that no two requests share a page."""
        return max(self.prompt, self.long + self.steps + WARM, self.batch * self.slot) + self.page * self.batch

    @property
    def slot(self) -> int:
        """Final tokens of one request of the batch; it already decodes while other prompts are computed."""
        return self.short + self.steps + 2 * WARM + 4 + 2 * pages_for(self.batch * self.short, self.chunk)


FULL = Sizes(LLAMA_3_8B, prompt=2**17, chunk=4096, long=2**19, batch=64, short=1024, steps=64, page=128)
TINY = {
    **LLAMA_3_8B,
    **dict(vocab_size=4096, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2),
    **dict(intermediate_size=96, max_position_embeddings=4096),
}
SMALL = Sizes(TINY, prompt=256, chunk=64, long=1024, batch=4, short=32, steps=8, page=16)


def open_runtime(sizes: Sizes, room: int | None, **settings: Any) -> MeshExecutor:
    """A runtime on the first device, with a pool for every load, or one that fits in `room` bytes.

    Raises:
        LaunchError: `room` is too small.
    """
    arch, mesh = Architecture.from_config(sizes.config), build_mesh(Layout(), jax.devices()[:1])
    shardings = {name: parameter_sharding(mesh, spec.axes) for name, spec in parameter_specs(arch, DTYPE).items()}
    parameters = place_parameters(random_parameters(arch, DTYPE, shardings, seed=0), arch, Layout(), mesh)
    tokens = sizes.pool
    if room is not None:
        each = Counts.of(arch, DTYPE, settings.get("kv_dtype") == "fp8").kv_bytes
        taken = sum(value.nbytes for value in parameters.values()) + WORKSPACE
        tokens = min(tokens, max(0, room - taken) // each // sizes.page * sizes.page)
    if tokens < max(sizes.prompt, sizes.batch * sizes.slot):
        raise LaunchError(f"the memory has room for {tokens:,} tokens of KV; the prompt needs {sizes.prompt:,}")
    buckets = Buckets(
        slices=(), decode=(1, sizes.batch), prefill=(sizes.chunk,), chunks=max(2, sizes.chunk // sizes.short + 1)
    )
    config = RuntimeConfig(
        slots=sizes.batch,
        pool_tokens=tokens,
        max_context=sizes.long + sizes.steps + 2 * WARM,
        mesh=MeshConfig(page_size=sizes.page, buckets=buckets),
        compilation_cache=None,
        **settings,
    )
    return MeshExecutor(with_gpu_rows(config), arch, parameters, mesh, lambda line: print(line, flush=True))


def ticks(executor: MeshExecutor, plans: Iterable[StepPlan]) -> None:
    """Run plans as the engine does, with `executor.ahead` plans in flight, and wait for the last."""
    flight: deque[Any] = deque()
    for plan in plans:
        flight.append(executor.submit(plan))
        if len(flight) > executor.ahead:
            executor.collect(flight.popleft())
    for handle in flight:
        executor.collect(handle)


def prefill_seconds(executor: MeshExecutor, sizes: Sizes, tokens: int) -> float:
    """Seconds of a prompt in chunks, alone."""
    ids = np.random.default_rng(0).integers(0, executor.vocab, tokens).tolist()
    executor.admit(Admission(0, GREEDY, tokens))
    executor.adopt(0, 0, range(pages_for(tokens, sizes.page)))
    edges = [*range(0, tokens, sizes.chunk), tokens]
    spans = itertools.pairwise(edges)
    chunks = [Chunk(0, a, b - a, tuple(ids[a:b]), b == tokens, a // sizes.page) for a, b in spans]
    started = time.perf_counter()
    ticks(executor, [StepPlan((chunk,)) for chunk in chunks])
    return time.perf_counter() - started


def place(executor: MeshExecutor, sizes: Sizes, batch: int, context: int) -> int:
    """Give `batch` slots scattered pages for a context and later decodes; returns the number of distinct pages."""
    share = pages_for(context + sizes.steps + 2 * WARM, sizes.page)
    order = np.random.default_rng(1).permutation(executor.sizes.pages)
    for slot in range(batch):
        executor.admit(Admission(slot, GREEDY, context))
        pages = order[np.arange(slot * share, (slot + 1) * share) % executor.sizes.pages]
        executor.adopt(slot, 0, pages.tolist())
    return min(batch * share, executor.sizes.pages)


def decodes(batch: int, context: int, count: int) -> list[StepPlan]:
    """`count` ticks in which every slot decodes one token, after `context` tokens."""
    return [StepPlan(tuple(Chunk(s, context + n, 1, None, True) for s in range(batch))) for n in range(count)]


def decode_seconds(executor: MeshExecutor, sizes: Sizes, batch: int, context: int) -> float:
    """Seconds of one tick of decodes, dispatched as by the engine."""
    plans = decodes(batch, context, WARM + sizes.steps)
    ticks(executor, plans[:WARM])
    started = time.perf_counter()
    ticks(executor, plans[WARM:])
    return (time.perf_counter() - started) / sizes.steps


def unwatched_seconds(executor: MeshExecutor, sizes: Sizes, batch: int, context: int) -> tuple[float, float]:
    """Seconds of a tick of decodes without waiting for results, and of its dispatch alone."""
    plans = decodes(batch, context, WARM + sizes.steps)
    ticks(executor, plans[:WARM])
    started = time.perf_counter()
    for plan in plans[WARM : 2 * WARM]:
        executor.submit(plan)
    dispatched = time.perf_counter()
    for plan in plans[2 * WARM :]:
        executor.submit(plan)
    executor.usable()  # waits for all of them
    return (time.perf_counter() - started) / sizes.steps, (dispatched - started) / WARM


def engine_seconds(executor: MeshExecutor, sizes: Sizes) -> float:
    """Seconds of one tick of the engine, from scheduler to text, while all requests of the batch decode."""
    rng, tokenizer = np.random.default_rng(2), Tokenizer.from_directory(BUNDLED_MODEL)
    engine = OfflineEngine(executor, tokenizer, time.perf_counter)
    sampling = SamplingParams(temperature=0, max_tokens=sizes.slot - sizes.short, ignore_eos=True)
    for _ in range(sizes.batch):
        engine.add(GenerationRequest(tuple(rng.integers(0, executor.vocab, sizes.short).tolist()), sampling))
    begun: set[int] = set()
    while len(begun) < sizes.batch:
        begun |= {number for number, event in engine.step() if isinstance(event, NewTokens)}
    for _ in range(WARM):
        engine.step()
    started, events = time.perf_counter(), []
    for _ in range(sizes.steps):
        events += engine.step()
    seconds = (time.perf_counter() - started) / sizes.steps
    if any(isinstance(event, Completed) for _, event in events):
        raise RuntimeError("a request ended while the clock ran; `Sizes.slot` gives them too few tokens")
    while engine.busy:
        engine.step()
    return seconds


def measure(executor: MeshExecutor, sizes: Sizes, ceilings: Ceilings) -> Iterable[Row]:
    """Measure every row against its ceiling; the aims are for one H200."""
    kv = " fp8" if executor.config.kv_dtype == "fp8" else ""
    counts = Counts.of(executor.programs.arch, DTYPE, bool(kv))
    prefill_seconds(executor, sizes, sizes.chunk)
    seconds = prefill_seconds(executor, sizes, sizes.prompt)
    rate = counts.prefill_flops(sizes.prompt) / seconds
    name, note = f"model prefill {sizes.prompt:,}{kv}", f"{sizes.prompt / seconds:,.0f} tokens/s, chunks {sizes.chunk}"
    yield Row(name, seconds, rate / 1e12, "TFLOP/s", rate / ceilings.matmul_flops, 0.60, note)

    own = place(executor, sizes, 1, sizes.long)
    seconds = decode_seconds(executor, sizes, 1, sizes.long)
    rate = counts.decode_bytes(sizes.long, 1) / seconds
    note = f"KV on {own:,} different pages of {pages_for(sizes.long, sizes.page):,}"
    yield Row(
        f"model decode 1 at {sizes.long:,}{kv}", seconds, rate / 1e12, "TB/s", rate / ceilings.copy_bytes, 0.85, note
    )

    context = sizes.slot - sizes.steps - 2 * WARM
    place(executor, sizes, sizes.batch, context)
    device, dispatch = unwatched_seconds(executor, sizes, sizes.batch, context)
    seconds = engine_seconds(executor, sizes)
    note = f"busy share; unwatched tick {device * 1e3:.3f} ms, its dispatch {dispatch * 1e3:.3f} ms"
    name = f"engine decode {sizes.batch} at {context:,}{kv}"
    yield Row(name, seconds, sizes.batch / seconds, "tokens/s", device / seconds, 0.97, note)


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; returns the exit code, 3 without an NVIDIA GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_model"), help="folder of the JSON")
    parser.add_argument("--attention", choices=ATTENTIONS, help="triton on a GPU, auto with --small, if not given")
    parser.add_argument("--kv-dtype", choices=KV_DTYPES, default="auto")
    parser.add_argument("--xla-options", choices=XLA_OPTIONS, default="auto")
    parser.add_argument("--small", action="store_true", help="a tiny model on any machine, to try this out")
    given = parser.parse_args(arguments)
    device, sizes = jax.devices()[0], SMALL if given.small else FULL
    found: dict[str, Any] = dict(device=device.device_kind)
    try:
        found = facts(device, GpuTarget.of(device), seed=0)
    except LaunchError as error:
        if not given.small:
            print(f"benchmarks.gpu.model: nothing was measured: {error}", file=sys.stderr)
            return NO_GPU
    ceilings = measure_ceilings(16, 256) if given.small else measure_ceilings()
    room = None if given.small else (device.memory_stats() or {}).get("bytes_limit")
    settings = dict(kv_dtype=given.kv_dtype, xla_options=given.xla_options)
    attention = given.attention or ("auto" if given.small else "triton")
    executor = open_runtime(sizes, room, attention=attention, **settings)
    rows = []
    for row in measure(executor, sizes, ceilings):
        rows.append(row)
        print(row.line(), flush=True)
    print(", ".join(f"{name} {value}" for name, value in found.items()))
    for line in (*ceilings.lines(), *(row.line() for row in rows)):
        print(line)
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "gpu_model.json"
    used = dict(settings, attention=executor.programs.attention.name, why=executor.programs.attention.why)
    stated = dict(facts=found, settings=used, ceilings=asdict(ceilings), rows=[asdict(row) for row in rows])
    file.write_text(json.dumps(stated, indent=1) + "\n", encoding="utf-8")
    print(f"written to {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
