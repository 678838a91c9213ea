"""Checks of the whole runtime on a GPU: its compiled tick, and its output against the CPU's."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medha_jax.attention import KernelAttention, values_of
from medha_jax.checkpoints import load_parameters
from medha_jax.config import BUNDLED_MODEL, Buckets, MeshConfig, RuntimeConfig
from medha_jax.engine import Completed, GenerationRequest, OfflineEngine
from medha_jax.mesh import build_mesh
from medha_jax.plan import SamplingParams, TokenResult
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.parameter_placement import place_parameters, stored_shapes, stored_shardings
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture
from medha_jax.text import Tokenizer
from tools.gpu_correctness import Outcome

NEW_TOKENS = 48
CONFIG = RuntimeConfig(
    max_context=4096,
    pool_tokens=16384,
    slots=8,
    mesh=MeshConfig(buckets=Buckets(decode=(8,), prefill=(64, 512), chunks=4, slices=())),
    keep_logits=True,
    compilation_cache=None,
)


def open_on(device: jax.Device, config: RuntimeConfig, dtype: str) -> MeshExecutor:
    """The bundled model on one device."""
    arch, layout = Architecture.from_directory(config.model), Layout()
    mesh = build_mesh(layout, [device])
    kind = jnp.dtype(dtype)
    shardings = stored_shardings(arch, layout, mesh, kind)
    stored = load_parameters(config.model, arch, kind, shardings, stored_shapes(arch, layout, kind))
    return MeshExecutor(config, arch, place_parameters(stored, arch, layout, mesh), mesh, lambda line: None)


def requests() -> list[GenerationRequest]:
    """Greedy requests with prompts of several lengths, cut into chunks in several ways."""
    rng = np.random.default_rng(0)
    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    cuts: list[tuple[int, Any]] = [(1000, None), (1000, (64,)), (300, (1, 7, 100)), (2500, (512,)), (5, None)]
    return [GenerationRequest(tuple(rng.integers(1, 2048, n).tolist()), greedy, chunks=chunks) for n, chunks in cuts]


def generated(executor: MeshExecutor) -> tuple[list[tuple[int, ...]], list[np.ndarray]]:
    """Tokens of every request, and the logits of its first token."""
    logits: dict[int, list[np.ndarray]] = {}

    def keep(number: int, result: TokenResult) -> None:
        logits.setdefault(number, []).append(result.logits)

    tokenizer = Tokenizer.from_directory(BUNDLED_MODEL)
    engine = OfflineEngine(executor, tokenizer, time.perf_counter, keep)
    numbers = [engine.add(request) for request in requests()]
    found: dict[int, tuple[int, ...]] = {}
    while engine.busy:
        for number, event in engine.step():
            if isinstance(event, Completed):
                found[number] = event.completion.token_ids
    return [found[n] for n in numbers], [np.asarray(logits[n][-NEW_TOKENS]) for n in numbers]


def pool_copies(text: str, shape: Sequence[int]) -> list[str]:
    """Lines of a compiled program that copy an array of the pool's shape."""
    dims = ",".join(map(str, shape))
    return re.findall(rf"^.*= \(?\w+\[{dims}\]\S* (?:copy|copy-start|transpose)\(.*$", text, re.MULTILINE)


def check_tick(executor: MeshExecutor) -> Iterator[Outcome]:
    """Check that the compiled ticks and slices call the kernels, do not copy the pool, and reuse its memory."""
    pool = executor.programs.state_shapes.pool
    shape = values_of(pool).shape
    size = sum(math.prod(part.shape) * part.dtype.itemsize for part in jax.tree.leaves(pool))
    for shape_of in executor.executables.shapes:
        compiled = executor.executables.compiled(shape_of)
        text, memory = compiled.as_text() or "", compiled.memory_analysis()
        copies = pool_copies(text, shape)
        calls = len(re.findall(r"custom_call_target=\"(?:__gpu\$)?(?:xla\.gpu\.)?triton", text))
        aliased = getattr(memory, "alias_size_in_bytes", 0)
        passed = not copies and calls >= 3 and aliased >= size
        detail = f"{calls} kernel calls, {len(copies)} copies of the pool, {aliased / size:.2f} of it aliased"
        yield Outcome(f"compiled {shape_of}", passed, detail)
        if copies:
            yield Outcome("first copy of the pool", False, copies[0].strip()[:200])


def check_generation(gpu: jax.Device) -> Iterator[Outcome]:
    """Compare greedy tokens in fp32 of the kernels, XLA on the GPU and XLA on the CPU; then logits in bfloat16."""
    cpu = jax.devices("cpu")[0]
    with jax.default_matmul_precision("highest"):
        wanted, logits = generated(open_on(cpu, replace(CONFIG, attention="xla"), "float32"))
        for setting in ("triton", "xla"):
            executor = open_on(gpu, replace(CONFIG, attention=setting), "float32")
            if setting == "triton":
                assert isinstance(executor.programs.attention, KernelAttention)
                yield from check_tick(executor)
            tokens, mine = generated(executor)
            same = sum(a == b for a, b in zip(tokens, wanted, strict=True))
            off = max(float(np.abs(a - b).max()) for a, b in zip(mine, logits, strict=True))
            passed = same == len(wanted) and off < 1e-3
            detail = f"{same} of {len(wanted)} requests equal, logits within {off:.1e}"
            yield Outcome(f"greedy tokens, fp32, {setting} on the GPU against the CPU", passed, detail)
    for kv_dtype in ("auto", "fp8"):
        config = replace(CONFIG, attention="triton", kv_dtype=kv_dtype)
        try:
            executor = open_on(gpu, config, "bfloat16")
        except ValueError as error:
            yield Outcome(f"bfloat16, KV {kv_dtype}", False, str(error))
            continue
        yield from check_tick(executor)
        _, mine = generated(executor)
        off = max(float(np.abs(a - b).max()) for a, b in zip(mine, logits, strict=True))
        spread = float(np.std(logits[0]))
        name = f"first logits, bfloat16 model, KV {kv_dtype}, against fp32 on the CPU"
        yield Outcome(name, off < spread, f"within {off:.2f}, where logits spread by {spread:.2f}")
