from __future__ import annotations

import jax
import numpy as np
import pytest

from medha_jax.inspection.hlo import COPIES, instructions, making
from medha_jax.plan import Admission, Chunk, SamplingParams, StepPlan, mask_words
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.tick_results import NO_TOKEN
from medha_jax.specs.buckets import UnknownShapeError

GREEDY = SamplingParams(temperature=0)


def prompt_chunk(slot: int, tokens: list[int], pages: tuple[int, ...]) -> Chunk:
    return Chunk(slot, 0, len(tokens), tuple(tokens), True, 0, pages)


def test_an_unknown_shape_is_an_error_and_nothing_is_compiled(executor: MeshExecutor) -> None:
    with pytest.raises(UnknownShapeError, match="129 prompt tokens"):
        executor.submit(StepPlan((prompt_chunk(0, [1] * 129, tuple(range(9))),)))


@pytest.mark.parametrize("slot", [-1, 8])
def test_a_slot_that_does_not_exist_is_refused(executor: MeshExecutor, slot: int) -> None:
    """Programs would write the last one for -1."""
    with pytest.raises(ValueError, match=f"there is no slot {slot}; there are 8"):
        executor.admit(Admission(slot, GREEDY, 3))
    with pytest.raises(ValueError, match=f"there is no slot {slot}; there are 8"):
        executor.set_masks([0, slot], np.zeros((2, mask_words(executor.vocab)), np.uint32))


def test_nothing_is_compiled_after_the_start(executor: MeshExecutor) -> None:
    compiled: list[str] = []

    def count(event: str, *_: object, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    def run(rng: np.random.Generator) -> None:
        slots = rng.permutation(8)[: rng.integers(1, 5)]
        chunks = []
        for slot in slots:
            executor.admit(Admission(int(slot), SamplingParams(temperature=float(rng.random()), seed=0), 3, (1,)))
            executor.adopt(int(slot), 0, rng.integers(0, 99, rng.integers(0, 9)).tolist())
            length = int(rng.integers(1, 30))
            chunks.append(prompt_chunk(int(slot), [5] * length, (int(slot) * 2, int(slot) * 2 + 1)))
        executor.collect(executor.submit(StepPlan(tuple(chunks))))

    rng = np.random.default_rng(0)
    jax.clear_caches()  # what runs is held by the executor, not by the caches of jit
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for _ in range(40):
            run(rng)
        assert compiled == []
        jax.jit(lambda x: x * 3 + 1)(np.arange(7))  # the listener does see compilations
        assert compiled
    finally:
        jax.monitoring.clear_event_listeners()


def test_the_pool_is_updated_in_place(executor: MeshExecutor) -> None:
    pool = executor.programs.state_shapes.pool
    size = pool.size * pool.dtype.itemsize
    for bucket in executor.executables.shapes:
        compiled = executor.executables.compiled(bucket)
        memory = compiled.memory_analysis()
        assert memory.alias_size_in_bytes >= size
        assert memory.temp_size_in_bytes < size
        assert making(instructions(compiled.as_text()), COPIES, pool.size) == (), bucket


def test_decodes_take_the_token_of_their_slot_not_of_their_row(executor: MeshExecutor) -> None:
    """Requests whose places in the tick change get what they get alone."""
    prompts = {2: [7, 8, 9], 5: [100, 3], 6: list(range(40, 75))}
    pages = {2: (0, 1, 2), 5: (3, 4, 5), 6: (6, 7, 8)}

    def prefill(slots: list[int]) -> dict[int, int]:
        for slot in slots:
            executor.admit(Admission(slot, GREEDY, len(prompts[slot])))
        chunks = tuple(prompt_chunk(slot, prompts[slot], pages[slot]) for slot in slots)
        results = executor.collect(executor.submit(StepPlan(chunks)))
        return dict(zip(slots, (r.token for r in results), strict=True))

    def decode(slots: list[int], step: int) -> dict[int, int]:
        chunks = tuple(Chunk(slot, len(prompts[slot]) + step, 1, None, True) for slot in slots)
        results = executor.collect(executor.submit(StepPlan(chunks)))
        return dict(zip(slots, (r.token for r in results), strict=True))

    alone: dict[int, list[int]] = {}
    for slot in prompts:
        alone[slot] = [prefill([slot])[slot], *(decode([slot], step)[slot] for step in range(4))]
    together = {slot: [token] for slot, token in prefill([6, 2, 5]).items()}
    for step, order in enumerate(([5, 2, 6], [2, 6, 5], [6, 5, 2], [5, 6, 2])):
        for slot, token in decode(order, step).items():
            together[slot].append(token)
    assert together == alone
    assert len({tuple(tokens) for tokens in alone.values()}) == 3


def test_where_no_chunk_is_the_last_there_is_no_token(executor: MeshExecutor) -> None:
    executor.admit(Admission(0, GREEDY, 8))
    first = Chunk(0, 0, 4, (1, 2, 3, 4), False, 0, (0,))
    (nothing,) = executor.collect(executor.submit(StepPlan((first,))))
    assert nothing is NO_TOKEN
    rest = Chunk(0, 4, 4, (5, 6, 7, 8), True)
    (cut,) = executor.collect(executor.submit(StepPlan((rest,))))
    executor.admit(Admission(0, GREEDY, 8))
    (whole,) = executor.collect(executor.submit(StepPlan((prompt_chunk(0, list(range(1, 9)), (0,)),))))
    assert cut.token == whole.token
    np.testing.assert_allclose(cut.logits, whole.logits, atol=1e-5)


def test_what_a_slot_asks_for_is_computed_only_where_a_token_of_it_is_read(executor: MeshExecutor) -> None:
    last = executor.config.slots - 1
    executor.admit(Admission(0, GREEDY, 4))
    executor.admit(Admission(last, SamplingParams(temperature=0, logprobs=3), 8))
    alone, begun = prompt_chunk(0, [1, 2, 3, 4], (0,)), Chunk(last, 0, 4, (1, 2, 3, 4), False, 0, (0,))
    for chunks in ((alone,), (begun, alone)):
        *_, greedy = executor.collect(executor.submit(StepPlan(chunks)))
        assert greedy.logprob == 0
    asked = Chunk(last, 4, 4, (5, 6, 7, 8), True, 0, (0,))
    assert executor.collect(executor.submit(StepPlan((asked,))))[0].logprob < 0


def test_a_tokens_logprob_and_results_come_in_plan_order(executor: MeshExecutor) -> None:
    executor.admit(Admission(0, SamplingParams(temperature=0, logprobs=3), 4))
    executor.admit(Admission(1, GREEDY, 1))
    first, second = prompt_chunk(0, [1, 2, 3, 4], (0,)), prompt_chunk(1, [9], (1,))
    forward = executor.collect(executor.submit(StepPlan((first, second))))
    backward = executor.collect(executor.submit(StepPlan((second, first))))
    for one, other in zip(forward, reversed(backward), strict=True):
        assert one.token == other.token
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-5)
    top = forward[0].top
    assert top[0] == (forward[0].token, pytest.approx(forward[0].logprob))
    assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)
    assert forward[0].finite
