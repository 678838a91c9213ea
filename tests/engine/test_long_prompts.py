"""A million tokens of prompt: 4 bytes each, checked at once, and kept once. Nothing here depends on time."""

from __future__ import annotations

import contextlib
import dataclasses
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig, SchedulerConfig
from medha_jax.engine import Completed, Engine, EngineService, GenerationRequest, Prefilled, scheduler_for
from medha_jax.plan import InvalidRequestError, SamplingParams
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.simulate.clock import VirtualClock
from medha_jax.simulate.counted_output import CountedOutput
from medha_jax.simulate.executor import SimulatedExecutor
from medha_jax.simulate.times import SummedTimes
from medha_jax.token_ids import GrowingIds, IdArray
from tests.engine.serving import Heard

MILLION, VOCAB = 1_000_000, 128_000
GREEDY = SamplingParams(temperature=0, max_tokens=3)
BUCKETS = Buckets(decode=(1, 4), prefill=(64, 8192), chunks=2, slices=())


def engine_of_a_million(cacheable: bool = True) -> tuple[Engine, VirtualClock]:
    clock, model = VirtualClock(), LinearTimeModel(fixed=1e-3, tokens=1e-6)
    mesh = MeshConfig(page_size=128, buckets=BUCKETS)
    config = RuntimeConfig(mesh=mesh, slots=4, pool_tokens=3 * MILLION, compilation_cache=None)
    executor = SimulatedExecutor(config, 2 * MILLION, SummedTimes(model), clock, vocab=VOCAB)
    executor.prefix_cacheable = cacheable
    return Engine(executor, scheduler_for(executor, SchedulerConfig(), model), model, clock, CountedOutput), clock


@contextlib.contextmanager
def served() -> Iterator[tuple[EngineService, Heard]]:
    engine, clock = engine_of_a_million()
    heard = Heard()
    service = EngineService(engine, heard, clock)
    service.start()
    try:
        yield service, heard
    finally:
        service.stop()


def prompt(tokens: int = MILLION) -> list[int]:
    return np.random.default_rng(0).integers(0, VOCAB, tokens).tolist()


def test_a_token_of_a_prompt_takes_four_bytes() -> None:
    """Also while it is computed: what the engine keeps for each page is little beside that."""
    with served() as (service, heard):
        heard.completion(service.submit(GenerationRequest(prompt(1000), GREEDY)))
        tracemalloc.start()
        try:
            number = service.submit(GenerationRequest(prompt(), GREEDY))
            heard.until(lambda: any(isinstance(event, Prefilled) for event in heard.events.get(number, [])))
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert 4 <= kept / MILLION <= 6
        assert heard.completion(number).prompt_tokens == MILLION


@pytest.mark.parametrize("bad", [VOCAB, -1, 2**32 - 1, 2**80])
def test_an_id_beyond_the_vocabulary_at_the_end_is_named(bad: int) -> None:
    engine, _ = engine_of_a_million()
    said = f"^token id {bad} is outside the vocabulary; allowed are 0 to 127999$"
    with pytest.raises(InvalidRequestError, match=said):
        engine.prepare(GenerationRequest([*prompt(), bad], GREEDY), 0.0)
    with served() as (service, _):
        number = service.submit(GenerationRequest((1,), GREEDY, prompt_bound=2 * MILLION - 1))
        with pytest.raises(InvalidRequestError, match=said):
            service.extend(number, (*prompt(), bad), True)


def test_a_range_stays_a_range() -> None:
    engine, _ = engine_of_a_million()
    number = engine.add(GenerationRequest(range(VOCAB), GREEDY))
    assert engine.scheduler.state(number).request.prompt == range(VOCAB)
    assert engine.scheduler.state(number).ids(5, 9) == range(5, 9)


@pytest.mark.parametrize("cacheable", [True, False])
def test_a_prompt_in_parts_is_kept_once(cacheable: bool) -> None:
    engine, _ = engine_of_a_million(cacheable)
    ids = prompt(200_000)
    wanted = GenerationRequest(ids[:1000], GREEDY, prompt_bound=len(ids))
    number = engine.add(wanted)
    generation = engine._generations[number]
    grown = generation.request.prompt_ids
    assert isinstance(grown, GrowingIds) and len(grown) == 1000
    if cacheable:
        assert grown is engine.scheduler.state(number).request.prompt
    buffers = set()
    for start in range(1000, len(ids), 1000):
        engine.extend(number, ids[start : start + 1000], start + 1000 == len(ids))
        buffers.add(grown.array.base.ctypes.data)
        assert number in engine._generations
    assert len(buffers) < 12, "parts go into one buffer, which doubles"
    state = engine.scheduler.state(number)
    whole = state.request.prompt
    assert generation.request.prompt_ids is whole and type(whole) is IdArray and whole == tuple(ids)
    assert generation.held is None
    assert np.shares_memory(np.asarray(state.ids(5, 100_000)), whole.array)
    events = []
    while engine.busy:
        events += engine.step()
    assert isinstance(events[-1][1], Completed) and events[-1][1].completion.prompt_tokens == len(ids)


def test_whole_prompts_are_shared_with_the_scheduler() -> None:
    engine, _ = engine_of_a_million()
    given = np.arange(5000, dtype=np.int32)
    number = engine.add(GenerationRequest(given, GREEDY))
    for ids in (engine._generations[number].request.prompt_ids, engine.scheduler.state(number).request.prompt):
        assert np.shares_memory(np.asarray(ids), given)
    again = dataclasses.replace(engine._generations[number].request, cache_salt="other")
    assert np.shares_memory(np.asarray(again.prompt_ids), given)
