"""The same comparison against transformers itself, on other random weights and prompts than the goldens."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from medha_jax.engine import GenerationRequest, OfflineEngine
from medha_jax.plan import SamplingParams, TokenResult
from medha_jax.runtime import open_executor
from medha_jax.text import Tokenizer
from tests.reference.test_golden import runtime
from tools.make_goldens import NEW_TOKENS, config, decisive, random_model

pytestmark = pytest.mark.reference


@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize(
    ("family", "rope"), [("llama", "llama3"), ("mistral", "dynamic"), ("qwen2", "yarn"), ("qwen3", "linear")]
)
def test_every_step_agrees_with_transformers(tmp_path: Path, family: str, rope: str, byte_tokenizer: Tokenizer) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from safetensors.torch import save_file

    seed = 20241
    stated, state = config(family, rope), random_model(family, seed)
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(stated))
    rng = np.random.default_rng(seed)
    goldens = [decisive(stated, state, length, seed) for length in (3, 700, 2500)]
    executor = open_executor(runtime(tmp_path), lambda line: None)
    logits: dict[int, list[np.ndarray]] = {number: [] for number in range(len(goldens))}

    def keep(number: int, result: TokenResult) -> None:
        logits[number].append(result.logits)

    engine = OfflineEngine(executor, byte_tokenizer, time.perf_counter, on_result=keep)
    for golden in goldens:
        chunks = tuple(rng.integers(1, 257, 8).tolist())
        sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
        engine.add(GenerationRequest(tuple(golden.prompt.tolist()), sampling, chunks=chunks))
    while engine.busy:
        engine.step()
    for number, golden in enumerate(goldens):
        ours = np.stack(logits[number][-NEW_TOKENS:])
        np.testing.assert_array_equal(ours.argmax(-1), golden.tokens)
        np.testing.assert_allclose(ours, golden.logits, rtol=0, atol=1e-4)
