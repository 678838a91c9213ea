from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medha_jax.engine import (
    Completed,
    Completion,
    Failed,
    GenerationRequest,
    ModelOutputError,
    NewTokens,
    OfflineEngine,
    Prefilled,
    generate,
)
from medha_jax.plan import InvalidRequestError, SamplingParams
from medha_jax.runtime import MeshExecutor
from medha_jax.text import Tokenizer
from tests.small import small_executor


def clock():
    """Seconds that advance by one a look."""
    return itertools.count().__next__


def alone(executor: MeshExecutor, tokenizer: Tokenizer, request: GenerationRequest) -> Completion:
    *_, last = generate(executor, tokenizer, request, clock())
    assert isinstance(last, Completed)
    return last.completion


@st.composite
def requests(draw: st.DrawFn) -> GenerationRequest:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sampling = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.9])),
        seed=draw(st.integers(0, 1000)),
        top_p=draw(st.sampled_from([1.0, 0.8])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
        max_tokens=draw(st.integers(1, 12)),
        ignore_eos=True,
    )
    prompt = tuple(rng.integers(0, 256, draw(st.integers(1, 200))).tolist())
    chunks = draw(st.none() | st.lists(st.integers(1, 128), min_size=1, max_size=4).map(tuple))
    return GenerationRequest(prompt, sampling, chunks=chunks)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(requests(), min_size=2, max_size=11))
def test_together_each_request_gets_what_it_gets_alone(
    executor: MeshExecutor, byte_tokenizer: Tokenizer, batch: list[GenerationRequest]
) -> None:
    engine = OfflineEngine(executor, byte_tokenizer, clock())
    for request in batch:
        engine.add(request)
    done: dict[int, Completion] = {}
    tokens: dict[int, list[int]] = {number: [] for number in range(len(batch))}
    computed = dict.fromkeys(tokens, 0)
    while engine.busy:
        for number, event in engine.step():
            assert number not in done, "nothing follows the last event"
            match event:
                case Prefilled(done=tokens_done):
                    assert computed[number] < tokens_done <= len(batch[number].prompt_ids)
                    computed[number] = tokens_done
                case NewTokens(token_ids=ids):
                    tokens[number].extend(ids)
                case Completed(completion=completion):
                    done[number] = completion
    assert sum(engine.load.free_pages) == executor.sizes.pages
    for number, request in enumerate(batch):
        assert computed[number] == len(request.prompt_ids)
        assert tuple(tokens[number]) == done[number].token_ids
        # another chunk schedule, nobody beside it
        single = alone(executor, byte_tokenizer, GenerationRequest(request.prompt_ids, request.sampling))
        assert done[number].token_ids == single.token_ids
        assert done[number].text == single.text


def test_timings_and_chunks_of_a_completion(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=2)
    seconds = 0
    request = GenerationRequest(tuple(range(100)), sampling, chunks=(40, 30))
    engine = OfflineEngine(executor, byte_tokenizer, lambda: seconds)
    engine.add(request)
    events = []
    while engine.busy:
        seconds += 10  # a step takes ten seconds
        events += engine.step()
    _, last = events[-1]
    assert isinstance(last, Completed)
    got = last.completion
    assert got.chunks == (40, 30, 30)
    assert got.ttft_s == 30
    assert got.tpot_s == 10
    assert (got.finish_reason, got.prompt_tokens, len(got.token_ids)) == ("length", 100, 5)
    assert [entry.token_id for entry in got.logprobs] == list(got.token_ids)
    assert all(entry.top[0][0] == entry.token_id and len(entry.top) == 2 for entry in got.logprobs)


def test_end_of_sequence_and_the_context_end_a_generation(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    prompt = tuple(range(50))
    free = alone(executor, byte_tokenizer, GenerationRequest(prompt, SamplingParams(temperature=0, max_tokens=8)))
    end = free.token_ids[3]
    stopped = alone(
        executor, byte_tokenizer, GenerationRequest(prompt, SamplingParams(temperature=0, max_tokens=8), eos_ids=(end,))
    )
    assert stopped.finish_reason == "stop"
    assert stopped.matched == end
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(end) + 1]
    held = SamplingParams(temperature=0, max_tokens=8, min_tokens=6)
    later = alone(executor, byte_tokenizer, GenerationRequest(prompt, held, eos_ids=(end,)))
    assert end not in later.token_ids[:6]
    full = tuple(np.random.default_rng(0).integers(0, 256, executor.sizes.context - 3).tolist())
    got = alone(executor, byte_tokenizer, GenerationRequest(full, SamplingParams(temperature=0)))
    assert got.finish_reason == "length"
    assert len(got.token_ids) == 3


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (GenerationRequest((), SamplingParams()), "the prompt is empty"),
        (GenerationRequest((1, 256), SamplingParams()), "token id 256 is outside the vocabulary; allowed are 0 to 255"),
        (GenerationRequest((-1,), SamplingParams()), "token id -1"),
        (GenerationRequest(range(200, 300), SamplingParams()), "token id 256 is outside the vocabulary"),
        (GenerationRequest(range(2, -2, -1), SamplingParams()), "token id -1 is outside the vocabulary"),
        (GenerationRequest((1,), SamplingParams(stop_token_ids=(256,))), "stop token id 256 is outside the vocabulary"),
        (
            GenerationRequest((1,), SamplingParams(logit_bias=((255, 1.0), (256, 1.0)))),
            "logit_bias: token id 256 is outside the vocabulary",
        ),
        (
            GenerationRequest((1,), SamplingParams(allowed_token_ids=(256,))),
            "allowed_token_ids: token id 256 is outside the vocabulary; allowed are 0 to 255",
        ),
        (
            GenerationRequest(
                (1,), SamplingParams(allowed_token_ids=(2, 3), min_tokens=1, stop_token_ids=(3,)), eos_ids=(2,)
            ),
            "min_tokens is 1, but all of allowed_token_ids end the request; allowed is 0",
        ),
        (GenerationRequest((1,) * 2048, SamplingParams()), "has 2048 tokens; allowed are 2047"),
        (GenerationRequest((1,) * 300, SamplingParams(), chunks=(200,)), "allowed are 1 to 128 tokens"),
        (GenerationRequest((1,), SamplingParams(), chunks=(0,)), "whole numbers from 1"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_taken(
    executor: MeshExecutor, byte_tokenizer: Tokenizer, request_: GenerationRequest, message: str
) -> None:
    engine = OfflineEngine(executor, byte_tokenizer, clock())
    with pytest.raises(InvalidRequestError, match=message):
        engine.add(request_)
    assert not engine.busy
    assert sum(engine.load.free_pages) == executor.sizes.pages


def test_what_never_fits_the_pool_is_refused(byte_tokenizer: Tokenizer) -> None:
    small = small_executor(pool_tokens=512)
    engine = OfflineEngine(small, byte_tokenizer, clock())
    with pytest.raises(InvalidRequestError, match="the prompt has 600 tokens; allowed are 511"):
        engine.add(GenerationRequest((1,) * 600, SamplingParams(max_tokens=5)))


def test_logits_that_are_not_numbers_end_the_request_with_an_error(byte_tokenizer: Tokenizer) -> None:
    broken = small_executor()
    broken._parameters["norm.scale"] = jax.numpy.full_like(broken._parameters["norm.scale"], np.nan)
    engine = OfflineEngine(broken, byte_tokenizer, clock())
    engine.add(GenerationRequest((1, 2, 3), SamplingParams()))
    *_, (number, event) = engine.step()
    assert (number, event) == (0, Failed("not_finite", "request 0: the model's values are not finite at 3 tokens"))
    assert not engine.busy
    assert sum(engine.load.free_pages) == broken.sizes.pages
    with pytest.raises(ModelOutputError, match="the model's values are not finite at 3 tokens"):
        alone(broken, byte_tokenizer, GenerationRequest((1, 2, 3), SamplingParams()))
