from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medha_jax.config import Buckets, RuntimeConfig
from medha_jax.plan import Admission, Chunk, SamplingParams, StepPlan, TokenResult
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.dtype import TIMED_ROWS, Ratio, choose_dtype, product_ratio
from medha_jax.specs.model import Architecture
from tests.checkpoints.small_models import stored_tensors, write_model
from tests.small import CONFIG, small_executor

LARGE = Architecture.from_config({**CONFIG, "vocab_size": 2**18, "tie_word_embeddings": True})
SMALL = Architecture.from_config(CONFIG)
GREEDY = SamplingParams(temperature=0)


def measured(*ratios: float) -> Ratio:
    """Products that take these times in bfloat16, relative to float32, by their rows."""
    times = dict(zip(TIMED_ROWS, ratios, strict=True))
    return lambda rows, inputs, outputs: times[rows]


def never(rows: int, inputs: int, outputs: int) -> float:
    raise AssertionError("nothing is to be measured")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dtypes")
    return {
        dtype: write_model(folder / dtype, "llama", stored_tensors("llama", dtype))
        for dtype in ("float32", "float16", "bfloat16")
    }


@pytest.mark.parametrize(
    ("ratios", "chosen"),
    [
        ((0.9, 0.5, 0.5), "bfloat16"),
        ((1.0, 0.7, 0.6), "bfloat16"),
        ((1.2, 0.3, 0.3), "float32"),  # decodes would be slower
        ((0.9, 0.9, 0.9), "float32"),  # not worth the digits
        ((6.1, 1.4, 1.3), "float32"),
    ],
)
def test_a_large_model_of_bfloat16_weights_takes_what_is_faster(
    stored: dict[str, Path], ratios: tuple[float, ...], chosen: str
) -> None:
    lines: list[str] = []
    found = choose_dtype(RuntimeConfig(model=stored["bfloat16"]), LARGE, lines.append, measured(*ratios))
    assert found.name == chosen
    (line,) = lines
    assert line.startswith(f"dtype {chosen}: ") and f"{ratios[0]:.2f}, {ratios[1]:.2f}" in line


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_that_would_lose_digits_stay_float32(stored: dict[str, Path], dtype: str) -> None:
    assert choose_dtype(RuntimeConfig(model=stored[dtype]), LARGE, print, never).name == "float32"


def test_a_small_model_stays_float32_and_a_stated_dtype_is_taken(stored: dict[str, Path]) -> None:
    assert choose_dtype(RuntimeConfig(model=stored["bfloat16"]), SMALL, print, never).name == "float32"
    for dtype in ("float32", "bfloat16"):
        config = RuntimeConfig(model=stored["float32"], dtype=dtype)
        assert choose_dtype(config, LARGE, print, never).name == dtype


def test_a_product_is_timed_in_both_dtypes() -> None:
    assert 0 < product_ratio(rows=2, inputs=8, outputs=16) < 1000


def prompt_in(executor: MeshExecutor, sizes: list[int], neighbours: int) -> list[TokenResult]:
    """The results of a prompt in chunks of these sizes, beside so many other prompts, and of one decode after it."""
    ids, page = list(np.random.default_rng(1).integers(0, 256, sum(sizes))), executor.config.mesh.page_size
    slots = range(neighbours + 1)
    for slot in slots:
        executor.admit(Admission(slot, GREEDY, len(ids)))
    found, start = list[TokenResult](), 0
    for size in [*sizes, 0]:
        chunks = []
        for slot in slots:
            mine = (
                tuple(ids[start : start + size]) if slot == 0 else tuple((i + slot) % 256 for i in ids[start:][:size])
            )
            first, past = -(-start // page), -(-(start + max(size, 1)) // page)
            pages = tuple(slot * 16 + number for number in range(first, past))
            last = start + size >= len(ids)
            chunks.append(Chunk(slot, start, max(size, 1), mine or None, last, first, pages))
        found.append(executor.collect(executor.submit(StepPlan(tuple(chunks))))[0])
        start += size
    return [found[-2], found[-1]]


def test_a_schedule_moves_bfloat16_logits_by_their_rounding_and_no_more() -> None:
    """bfloat16 has 8 bits: with any schedule logits lie within a tenth of their spread of float32's."""
    buckets = Buckets(decode=(1, 8), prefill=(64,), chunks=4, slices=())
    exact, short = (small_executor(dtype=dtype, buckets=buckets) for dtype in ("float32", "bfloat16"))
    wanted = prompt_in(exact, [64, 64, 22], 0)
    for executor in (exact, short):
        for sizes, neighbours in (([64, 64, 22], 0), ([16] * 9 + [6], 3)):
            got = prompt_in(executor, sizes, neighbours)
            for mine, theirs in zip(got, wanted, strict=True):
                assert mine.logits is not None and theirs.logits is not None
                spread = float(theirs.logits.std())
                error = float(np.abs(mine.logits - theirs.logits).max()) / spread
                assert error < (0.1 if executor is short else 1e-4)
