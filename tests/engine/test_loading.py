"""A server's start: few shapes first, and ticks measured until the time model can predict, however slow they are."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from typing import Any

import pytest

from medha_jax.config import Buckets, RuntimeConfig, SchedulerConfig
from medha_jax.engine import Engine, EngineLoader, scheduler_for
from medha_jax.engine.loading import measure_ticks
from medha_jax.engine.output import text_outputs
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.programs import Programs
from medha_jax.scheduler.time_model import LEAST_TICKS, FittedTimeModel, TickWork
from medha_jax.text import Tokenizer
from tests.engine.serving import CONFIG, Heard, ask
from tests.small import small_executor

FEW = Buckets(decode=(2, 4, 8), prefill=(64,), chunks=4, mixed_only=True, slices=(32,))


@pytest.mark.parametrize(("second", "enough"), [(0.01, True), (0.1, False), (100.0, False)])
def test_no_tick_seems_to_be_free_after_a_first_start(
    second: float, enough: bool, executor: MeshExecutor, byte_tokenizer: Tokenizer
) -> None:
    """Every look at the clock takes `second` seconds."""
    times, clock = FittedTimeModel({}), itertools.count(0.0, second).__next__
    scheduler = scheduler_for(executor, dataclasses.replace(CONFIG, prefix_cache=False), times)
    engine = Engine(executor, scheduler, times, clock, text_outputs(byte_tokenizer))
    measure_ticks(engine, executor, clock, times)
    assert times.ticks > 0 and (times.ticks >= LEAST_TICKS) == enough
    assert times.seconds(TickWork(tokens=8, context=100.0, rows=1)) > 0
    assert not engine.busy


def opened(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, lines: list[str], **stated: Any) -> EngineLoader:
    """A loader whose runtime is a small one."""

    def open_small(config: RuntimeConfig, report: Any, complete: bool) -> MeshExecutor:
        return small_executor(buckets=FEW, complete=complete, report=report)

    monkeypatch.setattr("medha_jax.runtime.open_executor", open_small)
    config = RuntimeConfig(compilation_cache=None)
    return EngineLoader(config, SchedulerConfig(), None, tokenizer, time.perf_counter, lines.append, **stated)


def test_it_serves_while_it_compiles_and_ends_without_waiting(
    monkeypatch: pytest.MonkeyPatch, byte_tokenizer: Tokenizer
) -> None:
    lower, lowered, goes_on = Programs.lower, list[str](), threading.Event()

    def slow(programs: Programs, shape: Any) -> Any:
        lowered.append(str(shape))
        assert len(lowered) == 1 or goes_on.wait(120)
        return lower(programs, shape)

    monkeypatch.setattr(Programs, "lower", slow)
    lines, heard = list[str](), Heard()
    loader = opened(monkeypatch, byte_tokenizer, lines)
    service = loader.load(heard)
    assert heard.completion(service.submit(ask(1, 100))).token_ids
    assert lowered == ["8+64", "2+64"] and [line.split()[0] for line in lines] == [
        "compiling",
        "compiled",
        "measured",
    ]
    before = time.monotonic()
    service.stop()
    loader.close()
    assert time.monotonic() - before < 10
    goes_on.set()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "compile"]
    thread.join(60)
    assert not thread.is_alive() and lowered == ["8+64", "2+64"]


def test_a_shape_that_fails_leaves_the_server_as_it_is(
    monkeypatch: pytest.MonkeyPatch, byte_tokenizer: Tokenizer
) -> None:
    lower, failed = Programs.lower, threading.Event()

    def failing(programs: Programs, shape: Any) -> Any:
        if str(shape).startswith("slice"):
            failed.set()
            raise RuntimeError("the compiler gave up")
        return lower(programs, shape)

    monkeypatch.setattr(Programs, "lower", failing)
    lines, heard = list[str](), Heard()
    loader = opened(monkeypatch, byte_tokenizer, lines)
    service = loader.load(heard)
    assert failed.wait(60)
    first, second = (heard.completion(service.submit(ask(1, 100))) for _ in range(2))
    assert first.token_ids == second.token_ids and service.healthy
    assert lines[-1] == "slice 0+32 could not be compiled: the server goes on with the shapes that it has"
    service.stop()
    loader.close()


def test_nothing_is_compiled_later_where_that_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, byte_tokenizer: Tokenizer
) -> None:
    lines: list[str] = []
    loader = opened(monkeypatch, byte_tokenizer, lines, complete=True)
    service = loader.load(Heard())
    service.stop()
    loader.close()
    assert [line.split()[0] for line in lines] == ["compiling", *["compiled"] * 4, "measured"]
    assert not any(thread.name == "compile" for thread in threading.enumerate())
