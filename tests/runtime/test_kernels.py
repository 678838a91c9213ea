"""The runtime with the Triton kernels in the interpreter: the same tokens as with XLA, end to end."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medha_jax.attention import GpuTarget, KernelAttention
from medha_jax.attention.gpu.launch import parse_table
from medha_jax.config import Buckets
from medha_jax.engine import Completed, GenerationRequest, OfflineEngine
from medha_jax.plan import SamplingParams
from medha_jax.runtime import MeshExecutor, programs
from medha_jax.text import Tokenizer
from tests.runtime import sliced
from tests.small import small_executor

if find_spec("triton") is None:  # which must be imported by `interpreted` first, so no importorskip
    pytest.skip("the `kernels` extra is not installed", allow_module_level=True)
from tests.attention import interpreted

pytestmark = pytest.mark.kernels

SHAPES: dict[str, Any] = dict(
    kv_dtype="fp8", page_size=16, pool_tokens=256, buckets=Buckets(decode=(2,), prefill=(20,), slices=(20,), chunks=2)
)
TABLE = parse_table(
    dict(gpu="sm80", head_dim=64, dtype=dtype, queries=queries, rows=rows, keys=16, warps=4, stages=2, resident=1)
    for dtype in ("float32", "float8_e4m3fn")
    for queries, rows in ((1, 16), (1000, 32))
)


def tokens(executor: MeshExecutor, tokenizer: Tokenizer) -> tuple[dict[int, tuple[int, ...]], np.ndarray]:
    """Greedy tokens of two requests, the second of which joins the first, and the logits of all that are read."""
    rng, logits = np.random.default_rng(0), []
    engine = OfflineEngine(executor, tokenizer, itertools.count().__next__, lambda _, r: logits.append(r.logits))
    greedy = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    waiting = [
        GenerationRequest(tuple(rng.integers(0, 256, length).tolist()), greedy, chunks=chunks)
        for length, chunks in ((35, None), (9, (1, 8)))
    ]
    found = {}
    while waiting or engine.busy:
        if waiting:
            engine.add(waiting.pop())
        for number, event in engine.step():
            if isinstance(event, Completed):
                found[number] = event.completion.token_ids
    return found, np.concatenate(logits)


def after_slices(executor: MeshExecutor) -> sliced.Request:
    """A prompt of which two chunks are computed layer by layer, with a tick between the layers."""
    driver = sliced.Driver(executor)
    prompt = tuple(np.random.default_rng(1).integers(0, 256, 36).tolist())
    one, other = sliced.Request(0, prompt, pages=((4, 2, 7),)), sliced.Request(1, prompt[:5], pages=((9,),))
    driver.admit(one)
    driver.admit(other)
    driver.prefill(other, 0)
    for start, length in ((0, 20), (20, 13)):
        driver.enter(one.chunk(executor, start, length))
        while not driver.slice(1):
            driver.decode([other])
    driver.prefill(one, 33)
    driver.decode([one, other])
    return one


@pytest.fixture(autouse=True)
def quick_compilation() -> Iterator[None]:
    """Compiling is most of the time here: let LLVM optimise less."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_kernels_generate_what_xla_generates(byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an eight-bit pool, where a difference in what is stored would grow from layer to layer."""
    by_xla = small_executor(**SHAPES)
    wanted, wanted_logits = tokens(by_xla, byte_tokenizer)
    wanted_sliced = after_slices(by_xla)

    def kernels(*_: Any, heads: int, group: int, head_dim: int, dtype: jnp.dtype, fp8: bool, **__: Any) -> Any:
        stored = "float8_e4m3fn" if fp8 else dtype.name
        return KernelAttention(GpuTarget("interpreter", 80, 2), TABLE, heads, group, head_dim, stored)

    monkeypatch.setattr(programs, "choose", kernels)
    calls = SimpleNamespace(launch=interpreted.launch_in_program)
    monkeypatch.setitem(sys.modules, "medha_jax.attention.gpu.call", calls)
    by_kernels = small_executor(**SHAPES)
    got, got_logits = tokens(by_kernels, byte_tokenizer)
    assert got == wanted
    np.testing.assert_allclose(got_logits, wanted_logits, atol=1e-4)
    sliced.agree(after_slices(by_kernels), wanted_sliced)
