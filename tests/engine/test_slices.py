"""Requests whose prompts run in slices: same tokens, and nothing leaks, wherever one is stopped."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import pytest

from medha_jax.config import Buckets
from medha_jax.engine import Completed, Engine, Failed, TickReport, scheduler_for, text_outputs
from medha_jax.runtime import MeshExecutor
from medha_jax.scheduler.request import Slo
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.text import Tokenizer
from tests.engine.serving import CONFIG, Faulty, alone, ask
from tests.small import small_executor

LAYERS = 4
# Ticks have a price and slices next to none, one layer each: long prompts run in slices of one layer.
SLICED = LinearTimeModel(tokens=1e-3, of_slices=LinearTimeModel(rows=0.04))


@pytest.fixture(scope="module")
def runtimes() -> dict[int, MeshExecutor]:
    sizes = Buckets(decode=(8,), prefill=(64,), slices=(32, 96), chunks=4, mixed_only=True)
    layers = {"num_hidden_layers": LAYERS}
    return {stages: small_executor(layers, spp=stages, buckets=sizes, pool_tokens=1024) for stages in (1, 2)}


def engine_of(executor: Any, tokenizer: Tokenizer, **callbacks: Any) -> Engine:
    scheduler = scheduler_for(executor, CONFIG, SLICED)
    return Engine(executor, scheduler, SLICED, time.monotonic, text_outputs(tokenizer), **callbacks)


def finish(engine: Engine) -> dict[int, Any]:
    """The last event of every request."""
    ends = {}
    while engine.busy:
        ends |= {number: event for number, event in engine.step() if isinstance(event, (Completed, Failed))}
    return ends


@pytest.mark.parametrize("stages", [1, 2])
def test_the_tokens_are_those_of_ticks_and_reports_name_the_layers(
    stages: int, runtimes: dict[int, MeshExecutor], byte_tokenizer: Tokenizer
) -> None:
    runtime, reports = runtimes[stages], list[TickReport]()
    engine = engine_of(runtime, byte_tokenizer, on_tick=reports.append)
    requests = [ask(1, 300, 5), ask(2, 20, 30), ask(3, 290, 5, repetition_penalty=1.3)]
    numbers = [engine.add(request) for request in requests]
    ends = finish(engine)
    for number, request in zip(numbers, requests, strict=True):
        assert ends[number].completion.token_ids == alone(runtime, byte_tokenizer, request).token_ids
    slices = [report.layers for report in reports if report.layers is not None]
    assert len(slices) >= 2 * LAYERS // stages * 3
    for (_, past), (first, _) in itertools.pairwise(slices):
        assert first == past % (LAYERS // stages), "rounds have no gaps"
    computed = [
        chunk.length
        for report in reports
        for chunk in report.chunks
        if not chunk.stage and not chunk.decode and not (report.layers and report.layers[0])
    ]
    assert sum(computed) == 300 + 20 + 290
    assert sum(engine.load.free_pages) == runtime.sizes.pages


@pytest.mark.parametrize("after", range(1, 2 * LAYERS + 2))
@pytest.mark.parametrize("stages", [1, 2])
def test_a_request_may_be_cancelled_after_any_slice(
    after: int, stages: int, runtimes: dict[int, MeshExecutor], byte_tokenizer: Tokenizer
) -> None:
    """Its pages and slot are free at once, and whoever gets them next has its own tokens."""
    runtime = runtimes[stages]
    engine = engine_of(runtime, byte_tokenizer)
    gone = engine.add(ask(1, 300, 5))
    for _ in range(after):
        engine.step()
    engine.cancel(gone)
    assert sum(engine.load.free_pages) == runtime.sizes.pages or engine.load.running == 1, "or it leaves in flight"
    requests = [ask(seed, 250, 6) for seed in (2, 3)]
    numbers = [engine.add(request) for request in requests]
    ends = finish(engine)
    for number, request in zip(numbers, requests, strict=True):
        assert ends[number].completion.token_ids == alone(runtime, byte_tokenizer, request).token_ids
    assert sum(engine.load.free_pages) == runtime.sizes.pages


@pytest.mark.parametrize("after", range(1, 2 * LAYERS + 2))
@pytest.mark.parametrize("stages", [1, 2])
def test_a_request_may_lose_its_pages_after_any_slice(
    after: int, stages: int, runtimes: dict[int, MeshExecutor], byte_tokenizer: Tokenizer
) -> None:
    runtime, reports = runtimes[stages], list[TickReport]()
    config = dataclasses.replace(CONFIG, policy="edf", preemption=True, bypass_s=1000.0)
    scheduler = scheduler_for(runtime, config, SLICED)
    outputs = text_outputs(byte_tokenizer)
    engine = Engine(runtime, scheduler, SLICED, time.monotonic, outputs, on_tick=reports.append)
    requests = [ask(1, 300, 5, slo=Slo(ttft_s=5000.0)), ask(2, 1000, 5, slo=Slo(ttft_s=1.0))]
    numbers = [engine.add(requests[0])]
    for _ in range(after):
        engine.step()
    assert reports[-1].layers is not None
    numbers.append(engine.add(requests[1]))
    ends = finish(engine)
    for number, request in zip(numbers, requests, strict=True):
        assert ends[number].completion.token_ids == alone(runtime, byte_tokenizer, request).token_ids
    assert ends[numbers[0]].completion.preemptions == 1
    assert sum(engine.load.free_pages) == runtime.sizes.pages


class FaultySlices(Faulty):
    """An executor whose n-th slice raises, in `submit_slice` or in `collect`."""

    def __init__(self, executor: MeshExecutor, place: str, nth: int) -> None:
        super().__init__(executor)
        self._place, self._left = place, nth

    def submit_slice(self, work: Any) -> Any:
        self._left -= 1
        if self._place == "submit" and self._left == 0:
            raise ZeroDivisionError
        return self._executor.submit_slice(work)

    def collect(self, handle: Any) -> Any:
        results = self._executor.collect(handle)
        if self._place == "collect" and self._left == 0:
            self._left = -1
            raise ZeroDivisionError
        return results


@pytest.mark.parametrize("nth", [1, 2, LAYERS, LAYERS + 1])
@pytest.mark.parametrize("place", ["submit", "collect"])
@pytest.mark.parametrize("stages", [1, 2])
def test_a_slice_that_raises_ends_its_requests_and_no_others(
    nth: int, place: str, stages: int, runtimes: dict[int, MeshExecutor], byte_tokenizer: Tokenizer
) -> None:
    runtime, errors = runtimes[stages], list[Exception]()
    engine = engine_of(FaultySlices(runtime, place, nth), byte_tokenizer, on_error=errors.append)
    requests = [ask(1, 20, 30), ask(2, 300, 5), ask(3, 280, 6)]
    numbers = [engine.add(requests[0])]
    engine.step()
    numbers += map(engine.add, requests[1:])
    ends = finish(engine)
    failed = Failed("internal", "an internal error ended the request (ZeroDivisionError)")
    assert len(errors) == 1
    assert 1 <= [ends[number] == failed for number in numbers].count(True) <= stages, "one in each stage at most"
    assert ends[numbers[0]] != failed, "the short one never is in a slice"
    for number, request in zip(numbers, requests, strict=True):
        if ends[number] != failed:
            assert ends[number].completion.token_ids == alone(runtime, byte_tokenizer, request).token_ids
    assert sum(engine.load.free_pages) == runtime.sizes.pages
