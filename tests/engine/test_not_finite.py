"""Requests that meet a value that is not finite end; their neighbours notice nothing, and nobody gets their pages."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
import pytest

from medha_jax.config import Buckets, SchedulerConfig
from medha_jax.engine import Completed, Engine, Failed, GenerationRequest, scheduler_for, text_outputs
from medha_jax.plan import SamplingParams
from medha_jax.runtime import MeshExecutor
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.text import Tokenizer
from tests.engine.serving import Faulty, alone
from tests.small import small_executor

BAD = 255
TICKS = LinearTimeModel()
SLICED = LinearTimeModel(tokens=1e-3, of_slices=LinearTimeModel(rows=0.04))
MESHES: dict[str, tuple[LinearTimeModel, dict[str, Any]]] = {
    "one device": (TICKS, {}),
    "groups": (TICKS, {"kvp": 2, "tokens_per_group": 128, "max_context": 256}),
    "slices of two stages": (
        SLICED,
        {"spp": 2, "buckets": Buckets(decode=(8,), prefill=(64,), slices=(32, 96), chunks=4, mixed_only=True)},
    ),
}


def poisoned(name: str, where: Any, **settings: Any) -> MeshExecutor:
    """A runtime with a parameter that is not a number in some places. It never samples BAD by itself."""
    runtime = small_executor({"num_hidden_layers": 4}, **settings)
    for changed, place, value in ((name, where, np.nan), ("head", BAD, 0.0)):
        values = np.array(runtime._parameters[changed])
        values[place] = value
        runtime._parameters[changed] = jax.device_put(values, runtime._parameters[changed].sharding)
    return runtime


@pytest.fixture(scope="module", params=MESHES)
def engine_of(request: pytest.FixtureRequest, byte_tokenizer: Tokenizer) -> Any:
    """Makes engines of one runtime on which the embedding of BAD is not a number."""
    model, settings = MESHES[request.param]
    runtime = poisoned("embedding", BAD, **settings)

    def make() -> tuple[MeshExecutor, Engine]:
        scheduler = scheduler_for(runtime, SchedulerConfig(), model)
        return runtime, Engine(runtime, scheduler, model, time.monotonic, text_outputs(byte_tokenizer))

    return make


def asked(ids: list[int], tokens: int = 4) -> GenerationRequest:
    return GenerationRequest(ids, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))


def finish(engine: Engine, late: list[GenerationRequest], ends: dict[int, Any]) -> None:
    """Run all; a late request comes with every second tick."""
    steps = 0
    while engine.busy or late:
        steps += 1
        if late and steps % 2 == 0:
            engine.add(late.pop())
        ends.update({number: event for number, event in engine.step() if isinstance(event, (Completed, Failed))})


def test_it_ends_whichever_chunk_it_is_in_and_its_neighbours_do_not_notice(
    engine_of: Any, byte_tokenizer: Tokenizer
) -> None:
    draw = np.random.default_rng(1)
    runtime, engine = engine_of()
    good = [asked(draw.integers(0, BAD, length).tolist(), 24) for length in (20, 5, 150)]
    bad = []
    for length, at in ((1, 0), (6, 1), (200, 3), (200, 120), (200, 199), (64, 63)):
        ids = draw.integers(0, BAD, length).tolist()
        ids[at] = BAD
        bad.append(asked(ids))
    ends: dict[int, Any] = {}
    numbers = [engine.add(request) for request in good]
    finish(engine, list(bad), ends)
    for number, request in zip(numbers, good, strict=True):
        assert ends[number].completion.token_ids == alone(runtime, byte_tokenizer, request).token_ids
    spoiled = [end for number, end in ends.items() if number not in numbers]
    assert len(spoiled) == len(bad)
    assert all(isinstance(end, Failed) and end.reason == "not_finite" for end in spoiled), spoiled
    # nobody gets their pages: the same prompts, and longer ones, end in the same way
    again: dict[int, Any] = {}
    finish(engine, [asked([*request.prompt_ids, *range(20)]) for request in bad], again)
    assert all(isinstance(end, Failed) and end.reason == "not_finite" for end in again.values()), again
    assert sum(engine.load.free_pages) == runtime.sizes.pages * len(engine.load.free_pages)


def test_keys_and_values_that_are_not_finite_end_a_request_too(byte_tokenizer: Tokenizer) -> None:
    """They are stored as zeros, so all that follows is finite, and wrong."""
    keys = slice(4, 6)  # of the joined heads: four of queries, two of keys, two of values
    runtime = poisoned("layers.attention.query_key_value.kernel.0", (slice(None), keys))
    scheduler = scheduler_for(runtime, SchedulerConfig(), TICKS)
    engine = Engine(runtime, scheduler, TICKS, time.monotonic, text_outputs(byte_tokenizer))
    engine.add(asked([1, 2, 3]))
    ends: dict[int, Any] = {}
    finish(engine, [], ends)
    assert [end.reason for end in ends.values()] == ["not_finite"]


def test_pages_of_a_plan_that_failed_are_offered_to_nobody(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    """It was never computed; who asks the same again must not find its pages."""
    faulty, errors = Faulty(executor), list[Exception]()
    scheduler = scheduler_for(faulty, SchedulerConfig(), TICKS)
    outputs = text_outputs(byte_tokenizer)
    engine = Engine(faulty, scheduler, TICKS, time.monotonic, outputs, on_error=errors.append)
    request = asked(np.random.default_rng(3).integers(0, 256, 100).tolist())
    for place in ("submit", "collect"):
        faulty.fail[place] = ZeroDivisionError()
        ends: dict[int, Any] = {}
        engine.add(request)
        finish(engine, [], ends)
        assert [end.reason for end in ends.values()] == ["internal"]
    assert len(errors) == 2
    number = engine.add(request)
    finish(engine, [], ends)
    completion = ends[number].completion
    assert completion.cached_tokens == 0
    assert completion.token_ids == alone(executor, byte_tokenizer, request).token_ids
