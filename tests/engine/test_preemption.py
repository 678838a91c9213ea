"""A request that loses its pages gives the tokens that it gives alone, on the real runtime."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from medha_jax.config import Buckets, SchedulerConfig
from medha_jax.engine import Completed, Completion, Engine, GenerationRequest, OfflineEngine, Prefilled, generate
from medha_jax.engine.offline import OFFLINE
from medha_jax.plan import SamplingParams
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.programs import Programs
from medha_jax.scheduler.request import Slo
from medha_jax.text import Tokenizer
from tests.compiling import FOR_MANY_TICKS
from tests.small import small_executor

PREEMPTIVE = dataclasses.replace(OFFLINE, policy="edf", preemption=True, bypass_s=1000.0)
SAMPLED: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.9, "seed": 7, "frequency_penalty": 0.5},
    {"temperature": 0, "repetition_penalty": 1.3, "presence_penalty": 0.2},
]


@functools.cache
def runtime(kvp: int = 1, spp: int = 1) -> MeshExecutor:
    """Pages for 256 tokens; with two groups half of them in each. Tests leave no request behind in it."""
    return made(kvp=kvp, spp=spp)


def made(model: dict[str, Any] | None = None, kvp: int = 1, **settings: Any) -> MeshExecutor:
    """A runtime of a test's own. These tests run many ticks, so its program takes longer to compile and less to run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "compiler_options", FOR_MANY_TICKS)
        return small_executor(
            model,
            kvp=kvp,
            tokens_per_group=None if kvp == 1 else 128,
            pool_tokens=256 // kvp,
            buckets=Buckets(decode=(4,), prefill=(64,), chunks=4, mixed_only=True, slices=()),
            shared_buckets=Buckets(decode=(4,), prefill=(64,), chunks=2, mixed_only=True, slices=()),
            **settings,
        )


def request(number: int, prompt: int, tokens: int, due: float, **sampling: Any) -> GenerationRequest:
    ids = tuple(np.random.default_rng(number).integers(0, 256, prompt).tolist())
    stated = {"seed": 0, "max_tokens": tokens, "ignore_eos": True, **sampling}
    return GenerationRequest(ids, SamplingParams(**stated), slo=Slo(ttft_s=due))


def alone(executor: MeshExecutor, tokenizer: Tokenizer, wanted: GenerationRequest) -> Completion:
    *_, last = generate(executor, tokenizer, wanted, lambda: 0.0)
    assert isinstance(last, Completed)
    return last.completion


def serve(
    executor: MeshExecutor,
    tokenizer: Tokenizer,
    arrivals: list[tuple[int, GenerationRequest]],
    config: SchedulerConfig = PREEMPTIVE,
    engine_of: Callable[..., Engine] = OfflineEngine,
) -> list[Completion]:
    """Complete requests that come at given ticks."""
    tick = 0
    engine = engine_of(executor, tokenizer, lambda: float(tick), config=config)
    waiting, done = list(arrivals), {}
    computed = dict.fromkeys(range(len(arrivals)), 0)
    while waiting or engine.busy:
        while waiting and waiting[0][0] <= tick:
            engine.add(waiting.pop(0)[1])
        for number, event in engine.step():
            if isinstance(event, Prefilled):
                assert event.done > computed[number], "progress never goes back"
                computed[number] = event.done
            if isinstance(event, Completed):
                done[number] = event.completion
        tick += 1
        assert tick < 2000
    assert sum(engine.load.free_pages) == executor.sizes.pages * executor.config.mesh.kvp
    return [done[number] for number in range(len(arrivals))]


@pytest.mark.parametrize("spp", [1, 2])
@pytest.mark.parametrize("kvp", [1, 2])
def test_preempted_requests_give_the_same_tokens(kvp: int, spp: int, byte_tokenizer: Tokenizer) -> None:
    executor = runtime(kvp=kvp, spp=spp)
    # each takes most of the pages (with two groups it is spread over both) and is in the middle of its output or its
    # prompt when a more urgent one comes
    prompt = 150 if kvp == 1 else 118
    arrivals = [
        (0, request(1, prompt, 40, 5000.0, **SAMPLED[0])),
        (14, request(2, prompt + 30, 30, 3000.0, **SAMPLED[1])),
        (17, request(3, prompt + 10, 30, 1000.0, **SAMPLED[2])),
    ]
    got = serve(executor, byte_tokenizer, arrivals)
    assert sum(completion.preemptions for completion in got) >= 2
    assert got[0].preemptions
    for completion, (_, wanted) in zip(got, arrivals, strict=True):
        single = alone(executor, byte_tokenizer, wanted)
        assert completion.token_ids == single.token_ids
        assert completion.text == single.text
        assert sum(completion.chunks) >= len(wanted.prompt_ids)


def test_a_request_without_a_seed_keeps_the_one_that_was_drawn(byte_tokenizer: Tokenizer) -> None:
    executor, drawn = runtime(), iter((11, 2**63 - 1, 13))
    arrivals = [
        (0, request(1, 150, 40, 5000.0, seed=None)),
        (14, request(2, 180, 30, 3000.0, seed=None)),
        (17, request(3, 160, 30, 1000.0, seed=None)),
    ]

    def engine_of(*arguments: Any, **settings: Any) -> Engine:
        engine = OfflineEngine(*arguments, **settings)
        engine._draw_seed = drawn.__next__
        return engine

    got = serve(executor, byte_tokenizer, arrivals, engine_of=engine_of)
    assert got[0].preemptions and next(drawn, None) is None
    for completion, (_, wanted), seed in zip(got, arrivals, (11, 2**63 - 1, 13), strict=True):
        stated = dataclasses.replace(wanted, sampling=dataclasses.replace(wanted.sampling, seed=seed))
        assert completion.token_ids == alone(executor, byte_tokenizer, stated).token_ids


WAYS = pytest.mark.parametrize(
    "sampling",
    [*SAMPLED, {"temperature": 0.7, "seed": 3, "logprobs": 2}, {"temperature": 0.8, "seed": 5, "stop": ("",)}],
    ids=["greedy", "seeded", "penalties", "logprobs", "stop"],
)


def interrupted(executor: Any, tokenizer: Tokenizer, sampling: dict[str, Any]) -> tuple[GenerationRequest, Completion]:
    """A request that will lose its pages, and what it gives alone."""
    if "stop" in sampling:  # something that it says
        text = alone(executor, tokenizer, request(1, 120, 24, 0.1, **{**sampling, "stop": ()})).text
        sampling = {**sampling, "stop": (text[14:16],)}
    wanted = request(1, 120, 24, 5000.0, **sampling)
    return wanted, alone(executor, tokenizer, wanted)


@WAYS
@pytest.mark.parametrize("kvp", [1, 2])
def test_it_may_lose_its_pages_at_any_token(kvp: int, sampling: dict[str, Any], byte_tokenizer: Tokenizer) -> None:
    """In its prompt or its output; with two groups it is spread over both from its fifth token on."""
    executor = runtime(kvp=kvp)
    wanted, single = interrupted(executor, byte_tokenizer, sampling)
    for tick in range(1, 26):
        got, _ = serve(executor, byte_tokenizer, [(0, wanted), (tick, request(2, 240, 2, 1.0, temperature=0))])
        assert got.preemptions == (tick <= len(single.token_ids))
        assert_same(got, single)


def assert_same(got: Completion, single: Completion) -> None:
    assert (got.token_ids, got.text, got.finish_reason) == (single.token_ids, single.text, single.finish_reason)
    found, expected = ([entry.logprob for entry in one.logprobs or ()] for one in (got, single))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("sampling", SAMPLED, ids=["greedy", "seeded", "penalties"])
@pytest.mark.parametrize("kvp", [1, 2])
def test_it_may_lose_its_pages_while_it_comes_in_parts(
    kvp: int, sampling: dict[str, Any], byte_tokenizer: Tokenizer
) -> None:
    executor = runtime(kvp=kvp)
    wanted, urgent = request(1, 120, 8, 5000.0, **sampling), request(2, 240, 2, 1.0, temperature=0)
    single, other = (alone(executor, byte_tokenizer, one).token_ids for one in (wanted, urgent))
    parts = {4: (30, 70), 8: (70, 110), 12: (110, 120)}  # by the tick in which they come
    lost = 0
    for urgent_tick in range(1, 22):
        tick, done = 0, dict[int, Completion]()
        engine = OfflineEngine(executor, byte_tokenizer, lambda now=tick: float(now), config=PREEMPTIVE)
        engine.add(dataclasses.replace(wanted, prompt_ids=wanted.prompt_ids[:30], prompt_bound=120))
        while tick < 22 or engine.busy:
            if tick in parts:
                start, end = parts[tick]
                engine.extend(0, wanted.prompt_ids[start:end], end == 120)
            if tick == urgent_tick:
                engine.add(urgent)
            before = engine.load.running
            done |= {number: event.completion for number, event in engine.step() if isinstance(event, Completed)}
            lost += tick == urgent_tick and before == engine.load.running == 1
            tick += 1
        assert (done[0].token_ids, done[1].token_ids) == (single, other)
        assert sum(engine.load.free_pages) == executor.sizes.pages * kvp
    assert lost > 10


@pytest.mark.parametrize("spp", [1, 2])
@pytest.mark.parametrize("kvp", [1, 2])
def test_answers_that_outgrow_the_pool_give_the_same_tokens(kvp: int, spp: int, byte_tokenizer: Tokenizer) -> None:
    executor = runtime(kvp=kvp, spp=spp)
    arrivals = [(0, request(number, 20 + number, 180, 1000.0, **SAMPLED[number % 3])) for number in range(4)]
    got = serve(executor, byte_tokenizer, arrivals)
    assert sum(completion.preemptions for completion in got) >= 2 and not got[0].preemptions
    for completion, (_, wanted) in zip(got, arrivals, strict=True):
        single = alone(executor, byte_tokenizer, wanted)
        assert (completion.token_ids, completion.text) == (single.token_ids, single.text)


def test_a_preempted_request_finds_its_own_pages_again(byte_tokenizer: Tokenizer) -> None:
    executor = runtime()
    config = dataclasses.replace(PREEMPTIVE, prefix_cache=True)
    # the urgent one takes 6 of 16 pages; the preempted one had 11 and finds those that were not given away
    arrivals = [(0, request(1, 150, 60, 5000.0, **SAMPLED[2])), (12, request(2, 84, 8, 10.0))]
    got = serve(executor, byte_tokenizer, arrivals, config)
    assert got[0].preemptions == 1
    assert sum(got[0].chunks) < 2 * 150, "not all of it was computed again"
    for completion, (_, wanted) in zip(got, arrivals, strict=True):
        assert completion.token_ids == alone(executor, byte_tokenizer, wanted).token_ids


def test_rope_that_follows_the_length_is_exact_after_preemption(byte_tokenizer: Tokenizer) -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    executor = made({"rope_scaling": scaling, "max_position_embeddings": 64})
    arrivals = [(0, request(1, 100, 60, 5000.0, **SAMPLED[0])), (30, request(2, 120, 8, 10.0, **SAMPLED[0]))]
    got = serve(executor, byte_tokenizer, arrivals, dataclasses.replace(PREEMPTIVE, prefix_cache=True))
    assert got[0].preemptions == 1
    for completion, (_, wanted) in zip(got, arrivals, strict=True):
        assert completion.token_ids == alone(executor, byte_tokenizer, wanted).token_ids


def test_a_cancelled_request_in_the_pipeline_gives_its_pages_back_when_it_has_left(byte_tokenizer: Tokenizer) -> None:
    executor = runtime(spp=2)
    engine = OfflineEngine(executor, byte_tokenizer, lambda: 0.0)
    first = engine.add(request(1, 200, 20, 10.0, temperature=0))
    second = request(2, 200, 20, 10.0, temperature=0)
    engine.step()
    engine.cancel(first)
    assert sum(engine.load.free_pages) < executor.sizes.pages
    number = engine.add(second)
    done = {}
    while engine.busy:
        for of, event in engine.step():
            assert of == number
            if isinstance(event, Completed):
                done[of] = event.completion
    assert done[number].token_ids == alone(executor, byte_tokenizer, second).token_ids
    assert sum(engine.load.free_pages) == executor.sizes.pages
