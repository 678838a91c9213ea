"""A prompt that begins on pages which an earlier request filled gives what it gives alone."""

from __future__ import annotations

import numpy as np
import pytest

from medha_jax.config import Buckets
from medha_jax.plan import Admission, Chunk, SamplingParams, StepPlan, TokenResult
from medha_jax.runtime import MeshExecutor
from tests.small import small_executor

PAGE = 16
GREEDY = SamplingParams(temperature=0)
PROMPT = tuple(np.random.default_rng(3).integers(0, 256, 75).tolist())


def run(executor: MeshExecutor, *chunks: Chunk) -> list[TokenResult]:
    """One plan, through all stages."""
    handle = executor.submit(StepPlan(chunks))
    for _ in range(executor.config.mesh.spp - 1):
        handle = executor.submit(StepPlan(()))
    return executor.collect(handle)


def generate(executor: MeshExecutor, slot: int, pages: tuple[int, ...], group: int, cached: int) -> list[TokenResult]:
    """Five results of PROMPT, of which `cached` tokens are on the first pages already."""
    executor.admit(Admission(slot, GREEDY, len(PROMPT), (), PROMPT[:cached]))
    whole = cached // PAGE
    if cached:
        executor.adopt(slot, group, pages[:whole])
    rest = PROMPT[cached:]
    results = run(executor, Chunk(slot, cached, len(rest), rest, True, whole, pages[whole:], (group,)))
    for step in range(4):
        results += run(executor, Chunk(slot, len(PROMPT) + step, 1, None, True, groups=(group,)))
    return results


@pytest.mark.parametrize(("spp", "kvp"), [(1, 1), (2, 2)])
def test_adopted_pages_give_what_the_prompt_gives_alone(spp: int, kvp: int) -> None:
    sizes = Buckets(decode=(2,), prefill=(128,), chunks=2, mixed_only=True, slices=())
    executor = small_executor(spp=spp, kvp=kvp, pool_tokens=512, buckets=sizes, shared_buckets=None)
    group = kvp - 1
    alone = generate(executor, 0, (3, 11, 7, 0, 20), group, cached=0)
    for slot, cached in ((1, 64), (2, 16), (0, 48)):
        whole = cached // PAGE
        pages = (3, 11, 7, 0, 20)[:whole] + (30, 29, 28, 27, 26)[whole:]
        for mine, theirs in zip(generate(executor, slot, pages, group, cached), alone, strict=True):
            assert mine.token == theirs.token
            np.testing.assert_allclose(mine.logits, theirs.logits, rtol=0, atol=1e-4)
    # what was shared is as it was
    again = generate(executor, 3, (3, 11, 7, 0, 25), group, cached=64)
    np.testing.assert_allclose(again[-1].logits, alone[-1].logits, rtol=0, atol=1e-4)
    # pages of other content do give something else, so the pages that are named are the ones that are read
    other = generate(executor, 1, (3, 3, 3, 3, 24), group, cached=64)
    assert np.abs(other[0].logits - alone[0].logits).max() > 1e-2


def test_neighbours_keep_their_pages(executor: MeshExecutor) -> None:
    """Two requests of one prefix run beside each other on the same pages."""
    alone = generate(executor, 0, (3, 11, 7, 0, 20), 0, cached=0)
    for slot in (1, 2):
        executor.admit(Admission(slot, GREEDY, len(PROMPT)))
        executor.adopt(slot, 0, (3, 11, 7, 0))
    rest = PROMPT[64:]
    together = run(executor, *(Chunk(slot, 64, len(rest), rest, True, 4, (20 + slot,)) for slot in (1, 2)))
    for result in together:
        np.testing.assert_allclose(result.logits, alone[0].logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("slot", "group", "pages"), [(8, 0, 1), (-1, 0, 1), (0, 1, 1), (0, 0, 129)])
def test_what_does_not_exist_is_refused(executor: MeshExecutor, slot: int, group: int, pages: int) -> None:
    with pytest.raises(ValueError, match="there are 8 slots of 128 pages on 1 groups"):
        executor.adopt(slot, group, [0] * pages)


def test_only_rope_that_follows_the_length_forbids_it(executor: MeshExecutor) -> None:
    assert executor.prefix_cacheable
    dynamic = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    assert not small_executor(dynamic).prefix_cacheable
