"""An engine that begins with few shapes gives what a complete one gives: before, while and after more come."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from typing import Any

import jax
import pytest

from medha_jax.config import Buckets
from medha_jax.engine import Engine, TickReport, scheduler_for, text_outputs
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.programs import Programs
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.specs.buckets import Bucket
from medha_jax.text import Tokenizer
from tests.engine.serving import CONFIG, alone, ask, drained
from tests.engine.test_slices import finish
from tests.small import small_executor

OWN = Buckets(decode=(2, 4), prefill=(16, 64), chunks=2, slices=(32,))
SHARED = Buckets(decode=(2,), prefill=(16,), chunks=1, slices=(16,), mixed_only=True)
MODEL = LinearTimeModel(tokens=1e-2, of_slices=LinearTimeModel(rows=1e-3))  # long prompts do better in slices
LAYOUTS = [(1, 1), (2, 2)]
LOWERED_ONCE = functools.cache(Programs.lower)  # equal programs of several runtimes are traced once
ASKED = [ask(1, 200, 8), ask(2, 30, 12), ask(3, 11, 20), ask(4, 130, 5), ask(5, 3, 25)]


def runtime(spp: int, kvp: int, complete: bool) -> MeshExecutor:
    return small_executor(
        spp=spp,
        kvp=kvp,
        tokens_per_group=112 if kvp > 1 else None,
        max_context=220,
        pool_tokens=1024,
        buckets=dataclasses.replace(OWN, mixed_only=kvp > 1),  # fewer shapes
        shared_buckets=SHARED,
        complete=complete,
    )


class Growing:
    """A runtime that takes the grids one by one, each before the step whose number is given, and not earlier."""

    def __init__(self, executor: MeshExecutor, steps: tuple[int, ...]) -> None:
        self._executor, self._steps, self._step = executor, steps, 0
        self.buckets: list[Bucket] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def grow(self) -> Any:
        self._step += 1
        if self._step not in self._steps:
            return None
        until = time.monotonic() + 120
        while (grid := self._executor.grow()) is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        return grid

    def submit(self, plan: Any) -> Any:
        handle = self._executor.submit(plan)
        self.buckets.append(handle.bucket)
        return handle


def served(executor: Any, tokenizer: Tokenizer) -> tuple[list[tuple[int, ...]], list[TickReport]]:
    """Tokens of every request, and the ticks."""
    reports: list[TickReport] = []
    scheduler, outputs = scheduler_for(executor, CONFIG, MODEL), text_outputs(tokenizer)
    engine = Engine(executor, scheduler, MODEL, time.monotonic, outputs, on_tick=reports.append)
    numbers = [engine.add(request) for request in ASKED]
    ends = finish(engine)
    return [tuple(ends[number].completion.token_ids) for number in numbers], reports


def rows(bucket: Bucket) -> tuple[int, int, int, int]:
    """A shape as `TickReport.bucket` names it."""
    return bucket.own.decode, bucket.own.prefill, bucket.shared.decode, bucket.shared.prefill


@pytest.fixture(scope="module", params=LAYOUTS, ids=["1 device", "spp=2, kvp=2"])
def layout(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


@pytest.fixture(scope="module")
def expected(layout: tuple[int, int], byte_tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """What a complete runtime gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "lower", LOWERED_ONCE)
        whole = runtime(*layout, complete=True)
    return [tuple(alone(whole, byte_tokenizer, request).token_ids) for request in ASKED]


@pytest.mark.parametrize("steps", [(4, 5, 6), (1, 9, 20)])
def test_tokens_are_the_same_whichever_shapes_are_there(
    steps: tuple[int, int, int],
    layout: tuple[int, int],
    expected: list[tuple[int, ...]],
    byte_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Programs, "lower", LOWERED_ONCE)
    executor = runtime(*layout, complete=False)
    first, whole = executor.grid, executor.programs.grid
    begun = {*executor.executables.shapes}
    assert executor.grow() is None and begun == {*executor.programs.shapes(first)}
    assert served(executor, byte_tokenizer)[0] == expected
    executor.compile_rest()
    growing = Growing(executor, steps)
    tokens, reports = served(growing, byte_tokenizer)
    assert tokens == expected
    assert executor.grid == whole and {*executor.executables.shapes} == {*executor.programs.shapes(whole)} > begun
    ticks = [report for report in reports if report.layers is None]
    assert [report.bucket for report in ticks] == [rows(bucket) for bucket in growing.buckets]
    assert {*growing.buckets[: steps[0] - 1]} <= begun
    assert not {*growing.buckets[steps[-1] :]} <= begun, "smaller shapes are taken where they do"
    drained(executor, byte_tokenizer)
    tokens, reports = served(executor, byte_tokenizer)
    assert tokens == expected
    assert any(report.layers is not None for report in reports), "long prompts run in slices when they can"
    drained(executor, byte_tokenizer)


def test_nothing_compiles_in_the_thread_of_the_ticks(layout: tuple[int, int], byte_tokenizer: Tokenizer) -> None:
    executor = runtime(*layout, complete=False)
    threads: set[int] = set()

    def note(event: str, *_: object, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            threads.add(threading.get_ident())

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        executor.compile_rest()
        served(Growing(executor, (3, 5, 30)), byte_tokenizer)
    finally:
        jax.monitoring.clear_event_listeners()
    assert threads and threading.get_ident() not in threads
