"""Reading what a tick returns, against one result after the other."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from medha_jax.plan import Chunk, StepPlan, TokenResult
from medha_jax.runtime.plan_columns import PlanColumns
from medha_jax.runtime.tick_results import (
    FINITE,
    NO_LOGITS,
    NO_TOKEN,
    SPOILED,
    WANTED,
    TickHandle,
    TickOutput,
    local_results,
)
from medha_jax.specs.buckets import Bucket, Segment
from tests.runtime.plain_packing import plain_places

SHAPE = Bucket(Segment(4, 16, 2))
LIKELIEST = 2


def handle(plan: StepPlan, seed: int, vocab: int = 0) -> TickHandle:
    """A tick whose results are random; one device holds the only group."""
    rng = np.random.default_rng(seed)
    values = np.zeros((1, SHAPE.samples, 3 + 2 * LIKELIEST), np.int32)
    values[..., 0] = rng.integers(0, 1000, SHAPE.samples)
    values[..., 1] = rng.integers(0, (FINITE | WANTED) + 1, SHAPE.samples)
    values[..., 2] = rng.normal(size=SHAPE.samples).astype(np.float32).view(np.int32)
    values[..., 3:5] = rng.integers(0, 1000, (SHAPE.samples, LIKELIEST))
    values[..., 5:] = rng.normal(size=(SHAPE.samples, LIKELIEST)).astype(np.float32).view(np.int32)
    logits = rng.normal(size=(1, SHAPE.samples, vocab)).astype(np.float32)
    return TickHandle(PlanColumns.of(plan), SHAPE, TickOutput(jnp.asarray(values), jnp.asarray(logits)))


def one_by_one(tick: TickHandle) -> dict[int, TokenResult]:
    """The results, read one after the other."""
    values, logits = np.asarray(tick.output.values)[0], np.asarray(tick.output.logits)[0]
    found = {}
    for number, (_, sample) in plain_places(tick.leaving, tick.bucket).items():
        row = values[sample]
        kept = logits[sample] if logits.size else NO_LOGITS
        if row[1] & WANTED:
            floats = row.view(np.float32)
            top = tuple((int(row[3 + n]), float(floats[3 + LIKELIEST + n])) for n in range(LIKELIEST))
            found[number] = TokenResult(int(row[0]), bool(row[1] & FINITE), float(floats[2]), top, kept)
        else:
            found[number] = TokenResult(int(row[0]), bool(row[1] & FINITE), logits=kept)
    return found


@pytest.mark.parametrize("vocab", [0, 5], ids=["no logits", "logits"])
@pytest.mark.parametrize("seed", range(5))
def test_results_are_those_of_their_samples(seed: int, vocab: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.permutation([1] * int(rng.integers(0, 5)) + [5] * int(rng.integers(1, 3))).tolist()
    chunks = tuple(Chunk(slot, 0, length, (7,) * length, True) for slot, length in enumerate(lengths))
    tick = handle(StepPlan(chunks), seed, vocab)
    ours, plain = local_results(tick), one_by_one(tick)
    assert sorted(ours) == sorted(plain) == list(range(len(chunks)))
    for number, mine in ours.items():
        theirs = plain[number]
        assert mine[:4] == theirs[:4] and [type(value) for value in mine[:4]] == [int, bool, float, tuple]
        np.testing.assert_array_equal(mine.logits, theirs.logits)


def test_a_plan_without_a_last_chunk_has_no_tokens() -> None:
    seen = set()
    for seed in range(8):
        tick = handle(StepPlan((Chunk(0, 0, 5, (7,) * 5, False),)), seed)
        finite = one_by_one(tick)[0].finite
        assert local_results(tick) == {0: NO_TOKEN if finite else SPOILED}
        seen.add(finite)
    assert seen == {True, False}
    assert local_results(handle(StepPlan(()), 0)) == {}
