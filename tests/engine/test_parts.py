"""A prompt that comes in parts gives what it gives as a whole."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medha_jax.config import Buckets, SchedulerConfig
from medha_jax.engine import Completed, Engine, GenerationRequest, NewTokens, Prefilled
from medha_jax.plan import InvalidRequestError
from medha_jax.runtime import MeshExecutor
from medha_jax.text import Tokenizer
from tests.engine.serving import CONFIG, alone, ask, engine_of, serving
from tests.scheduler.serving import pending_work
from tests.small import small_executor

SAMPLED: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "seed": 7, "frequency_penalty": 0.5},
    {"repetition_penalty": 1.4, "presence_penalty": 0.3},
]


def run(engine: Engine, arrivals: list[tuple[int, GenerationRequest, list[tuple[int, int]]]]) -> dict[int, Completed]:
    """Requests that come at given steps, and their prompts in parts: (tokens, steps until they come)."""
    due: list[tuple[int, int, int]] = []  # step, number, end of the part
    ended, tick, waiting = dict[int, Completed](), 0, list(arrivals)
    sent: dict[int, int] = {}
    while waiting or engine.busy:
        while waiting and waiting[0][0] <= tick:
            _, request, parts = waiting.pop(0)
            first = parts[0][0]
            bound = max(len(request.prompt_ids), 1)
            number = engine.add(dataclasses.replace(request, prompt_ids=request.prompt_ids[:first], prompt_bound=bound))
            sent[number] = first
            ends = itertools.accumulate(tokens for tokens, _ in parts)
            whens = itertools.accumulate((delay for _, delay in parts), initial=tick)
            due += [(when, number, end) for when, end in list(zip(list(whens)[1:], ends, strict=True))[1:]]
            due.append((tick + sum(delay for _, delay in parts) + 1, number, len(request.prompt_ids)))
        for entry in sorted(due):
            when, number, end = entry
            if when <= tick:
                due.remove(entry)
                last = not any(of == number for _, of, _ in due)
                engine.extend(number, arrivals[number][1].prompt_ids[sent[number] : end], last)
                sent[number] = max(end, sent[number])
        for number, event in engine.step():
            assert number not in ended
            if isinstance(event, NewTokens):
                assert not any(of == number for _, of, _ in due), "no token before the prompt is complete"
            if isinstance(event, Prefilled):
                assert event.done <= sent[number]
            if isinstance(event, Completed):
                ended[number] = event
        tick += 1
        assert tick < 5000
    return ended


@st.composite
def parts(draw: st.DrawFn) -> tuple[int, GenerationRequest, list[tuple[int, int]]]:
    cut = draw(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 6)), min_size=1, max_size=6))
    request = ask(
        draw(st.integers(0, 10_000)),
        sum(tokens for tokens, _ in cut),
        draw(st.integers(1, 6)),
        chunks=draw(st.none() | st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple)),
        **draw(st.sampled_from(SAMPLED)),
    )
    return draw(st.integers(0, 10)), request, cut


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(parts(), min_size=1, max_size=5), st.integers(0, 1), st.booleans())
def test_any_split_with_any_delays_gives_the_same_tokens(
    executor: MeshExecutor, byte_tokenizer: Tokenizer, arrivals: list[Any], ahead: int, cache: bool
) -> None:
    arrivals = sorted(arrivals, key=lambda arrival: arrival[0])
    config = SchedulerConfig(policy="fcfs", prefix_cache=cache)
    engine = engine_of(executor, byte_tokenizer, config, itertools.count().__next__, ahead)
    ended = run(engine, arrivals)
    assert sum(engine.load.free_pages) == executor.sizes.pages
    assert pending_work(engine.scheduler) == (0,)
    assert engine.scheduler.stats.waiting_tokens == 0
    for number, (_, request, _) in enumerate(arrivals):
        single = alone(executor, byte_tokenizer, request)
        completion = ended[number].completion
        assert (completion.token_ids, completion.text) == (single.token_ids, single.text)
        assert completion.prompt_tokens == len(request.prompt_ids)


def test_a_pipeline_and_groups(byte_tokenizer: Tokenizer) -> None:
    runtime = small_executor(
        spp=2,
        kvp=2,
        tokens_per_group=128,
        pool_tokens=512,
        buckets=Buckets(decode=(4,), prefill=(64,), chunks=4, mixed_only=True, slices=()),
        shared_buckets=Buckets(decode=(4,), prefill=(64,), chunks=2, mixed_only=True, slices=()),
    )
    arrivals = [
        (0, ask(1, 200, 8, repetition_penalty=1.4), [(50, 1), (100, 3), (50, 9)]),
        (1, ask(2, 100, 40, frequency_penalty=0.5), [(1, 1), (1, 3), (98, 9)]),
    ]
    ended = run(engine_of(runtime, byte_tokenizer, CONFIG, itertools.count().__next__), arrivals)
    for number, (_, request, _) in enumerate(arrivals):
        assert ended[number].completion.token_ids == alone(runtime, byte_tokenizer, request).token_ids


def test_rope_that_follows_the_length_waits_for_the_whole_prompt(byte_tokenizer: Tokenizer) -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    runtime = small_executor({"rope_scaling": scaling, "max_position_embeddings": 64}, pool_tokens=512)
    request = ask(1, 150, 8)
    ended = run(
        engine_of(runtime, byte_tokenizer, CONFIG, itertools.count().__next__), [(0, request, [(90, 3), (60, 5)])]
    )
    assert ended[0].completion.token_ids == alone(runtime, byte_tokenizer, request).token_ids


def test_what_is_there_is_computed_before_the_rest_comes(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    request = ask(4, 300, 5)
    with serving(executor, byte_tokenizer) as (service, heard):
        first = dataclasses.replace(request, prompt_ids=request.prompt_ids[:200], prompt_bound=400)
        number = service.submit(first)
        # all but the last token of what is there, which is kept to sample after
        heard.until(lambda: Prefilled(199, 200) in heard.events.get(number, []))
        assert service.load().free_pages == (executor.sizes.pages - -(-200 // 16),)
        service.extend(number, request.prompt_ids[200:], True)
        assert heard.completion(number).token_ids == alone(executor, byte_tokenizer, request).token_ids
        service.extend(number, (1, 2, 3), True)  # it is over: nothing happens
        assert service.drain(10)


def test_what_parts_may_hold(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    with serving(executor, byte_tokenizer) as (service, heard):
        number = service.submit(ask(1, 20, prompt_bound=30))
        with pytest.raises(InvalidRequestError, match="token id 256 is outside the vocabulary"):
            service.extend(number, (256,), False)
        with pytest.raises(InvalidRequestError, match="the prompt has 31 tokens; allowed are 30, as stated"):
            service.extend(number, (1,) * 11, True)
        for bound in (19, 2048):
            with pytest.raises(InvalidRequestError, match=f"at most {bound} tokens; allowed are 20"):
                service.submit(ask(1, 20, prompt_bound=bound))
        service.extend(number, (), True)
        assert heard.completion(number).token_ids == alone(executor, byte_tokenizer, ask(1, 20)).token_ids


def test_the_output_may_fill_what_was_reserved(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    """Nothing is stated about the output: prompt and output have the whole context."""
    engine = engine_of(executor, byte_tokenizer, CONFIG, time.monotonic)
    request = ask(1, 2000, None, prompt_bound=2047)
    number = engine.add(request)
    engine.extend(number, (7,) * 40, True)
    events = []
    while engine.busy:
        events += engine.step()
    _, last = events[-1]
    assert isinstance(last, Completed)
    assert len(last.completion.token_ids) == 8
    assert last.completion.finish_reason == "length"
