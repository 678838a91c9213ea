"""Tokens and logits against Hugging Face transformers: every family, RoPE rule, prompt length and chunk schedule."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.engine import GenerationRequest, NewTokens, OfflineEngine
from medha_jax.plan import SamplingParams, TokenResult
from medha_jax.runtime import open_executor
from medha_jax.text import Tokenizer
from tools.make_goldens import FAMILIES, GOLDEN, NEW_TOKENS, PROMPT_LENGTHS, ROPES

SCHEDULES = {"auto": None, "1": (1,), "7": (7,), "64": (64,), "1000": (1000,), "random": "random"}
TOLERANCE = 1e-4


def random_schedule(length: int, seed: int) -> tuple[int, ...]:
    """Chunk sizes between 1 and 1000, most of them small."""
    rng = np.random.default_rng([seed, length])
    return tuple(int(x) for x in np.exp(rng.uniform(0, np.log(1000), 64)))


def model_directory(tmp_path: Path, family: str, rope: str) -> Path:
    """A Hugging Face directory of one golden model."""
    shutil.copy(GOLDEN / family / "model.safetensors", tmp_path / "model.safetensors")
    shutil.copy(GOLDEN / family / f"{rope}.json", tmp_path / "config.json")
    return tmp_path


# models of one family run the same programs: apart, so that no two workers compile them at once
CASES = [(family, rope) for rope in ROPES for family in FAMILIES]


def runtime(model: Path) -> RuntimeConfig:
    """Of a directory with one of the models: room for every prompt length and schedule at once."""
    return RuntimeConfig(
        model=model,
        max_context=5120,
        pool_tokens=7680 * len(SCHEDULES),
        slots=len(PROMPT_LENGTHS) * len(SCHEDULES),
        mesh=MeshConfig(
            buckets=Buckets(decode=(len(SCHEDULES),), prefill=(8, 1024), chunks=2, mixed_only=True, slices=())
        ),
        keep_logits=True,
        compilation_cache=None,
    )


@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize(("family", "rope"), CASES)
def test_same_tokens_and_logits_as_transformers(
    tmp_path: Path, family: str, rope: str, byte_tokenizer: Tokenizer
) -> None:
    golden = np.load(GOLDEN / family / f"{rope}.npz")
    cases = [(length, name) for length in PROMPT_LENGTHS for name in SCHEDULES]
    logits: dict[int, list[np.ndarray]] = {}

    def keep(number: int, result: TokenResult) -> None:
        logits.setdefault(number, []).append(result.logits)

    executor = open_executor(runtime(model_directory(tmp_path, family, rope)), lambda line: None)
    engine = OfflineEngine(executor, byte_tokenizer, time.perf_counter, on_result=keep)
    for length, name in cases:
        chunks = SCHEDULES[name]
        request = GenerationRequest(
            prompt_ids=tuple(golden[f"prompt_{length}"].tolist()),
            sampling=SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True),
            chunks=random_schedule(length, seed=1) if chunks == "random" else chunks,
        )
        engine.add(request)
    tokens: dict[int, list[int]] = {number: [] for number in range(len(cases))}
    while engine.busy:
        for number, event in engine.step():
            if isinstance(event, NewTokens):
                tokens[number].extend(event.token_ids)

    for number, (length, name) in enumerate(cases):
        expected = golden[f"logits_{length}"]
        first, last = logits[number][-NEW_TOKENS], logits[number][-1]
        np.testing.assert_array_equal(tokens[number], golden[f"tokens_{length}"], f"{length} tokens, chunks {name}")
        np.testing.assert_allclose(first, expected[0], rtol=0, atol=TOLERANCE, err_msg=f"{length}, {name}, prompt")
        np.testing.assert_allclose(last, expected[1], rtol=0, atol=TOLERANCE, err_msg=f"{length}, {name}, last")
    assert sum(engine.load.free_pages) == executor.sizes.pages
