"""An engine service on a small runtime, and a listener that tests can wait on."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from medha_jax.config import SchedulerConfig
from medha_jax.engine import (
    Completed,
    Completion,
    Engine,
    EngineEvent,
    EngineService,
    ErrorLog,
    Failed,
    GenerationRequest,
    OfflineEngine,
    TickReport,
    generate,
    scheduler_for,
    text_outputs,
)
from medha_jax.plan import SamplingParams
from medha_jax.runtime import MeshExecutor
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.text import Tokenizer

CONFIG = SchedulerConfig(prefix_cache=False)


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.events: dict[int, list[EngineEvent]] = {}
        self.batches: list[list[tuple[int, EngineEvent]]] = []
        self.reports: list[TickReport] = []
        self.threads: set[int] = set()
        self._changed = threading.Condition()

    def __call__(self, events: list[tuple[int, EngineEvent]]) -> None:
        with self._changed:
            self.threads.add(threading.get_ident())
            self.batches.append(events)
            for number, event in events:
                self.events.setdefault(number, []).append(event)
            self._changed.notify_all()

    def until(self, met: Callable[[], bool], seconds: float = 60) -> None:
        with self._changed:
            assert self._changed.wait_for(met, seconds), self.events

    def end(self, number: int) -> EngineEvent:
        """The last event of a request."""
        self.until(lambda: any(isinstance(event, (Completed, Failed)) for event in self.events.get(number, [])))
        return self.events[number][-1]

    def completion(self, number: int) -> Completion:
        end = self.end(number)
        assert isinstance(end, Completed), end
        return end.completion


class Faulty:
    """An executor that behaves like another one, but raises where it is told to."""

    def __init__(self, executor: MeshExecutor) -> None:
        self._executor = executor
        self.fail: dict[str, Exception] = {}  # the next call of a method raises, once
        self.broken = False  # whether the state is lost with every error
        self.collected = self.failures = 0
        self.pause_s = 0.0  # of every tick
        self._free, self._held = threading.Event(), threading.Event()
        self._free.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def submit(self, plan: Any) -> Any:
        if plan.chunks:
            self._maybe("submit")
        return self._executor.submit(plan)

    def collect(self, handle: Any) -> Any:
        results = self._executor.collect(handle)
        time.sleep(self.pause_s)
        if not self._free.is_set():
            self._held.set()
            assert self._free.wait(60)
        if handle.leaving.chunks:
            self._maybe("collect")
        self.collected += 1
        return results

    def hold(self) -> None:
        """Let the next tick, and those after it, hang in `collect`."""
        self._free.clear()

    def until_held(self) -> None:
        """Wait until a tick hangs."""
        assert self._held.wait(60)

    def release(self) -> None:
        """Let ticks end again."""
        self._held.clear()
        self._free.set()

    def _maybe(self, name: str) -> None:
        error = self.fail.pop(name, None)
        if error is not None:
            self.failures += 1
            if self.broken:
                self._executor._state.pool.delete()
            raise error


def engine_of(
    executor: Any,
    tokenizer: Tokenizer,
    config: SchedulerConfig = CONFIG,
    clock: Callable[[], float] = time.monotonic,
    ahead: int | None = None,
    **callbacks: Any,
) -> Engine:
    model = LinearTimeModel()
    scheduler = scheduler_for(executor, config, model, ahead)

    return Engine(executor, scheduler, model, clock, text_outputs(tokenizer), **callbacks)


@contextlib.contextmanager
def serving(
    executor: Any, tokenizer: Tokenizer, config: SchedulerConfig = CONFIG, **settings: Any
) -> Iterator[tuple[EngineService, Heard]]:
    heard = Heard()
    told = {"on_tick": heard.reports.append, "on_error": ErrorLog(time.monotonic)}
    service = EngineService(engine_of(executor, tokenizer, config, **told, **settings), heard, time.monotonic)
    service.start()
    try:
        yield service, heard
    finally:
        service.stop()


def ask(seed: int, prompt: int, tokens: int = 4, /, **stated: Any) -> GenerationRequest:
    """A greedy request for random tokens."""
    fields = {field.name for field in dataclasses.fields(GenerationRequest)}
    own = {name: stated.pop(name) for name in list(stated) if name in fields}
    sampling = SamplingParams(**{"temperature": 0, "max_tokens": tokens, "ignore_eos": True, **stated})
    ids = tuple(np.random.default_rng(seed).integers(0, 256, prompt).tolist())
    return GenerationRequest(ids, sampling, **own)


def alone(executor: MeshExecutor, tokenizer: Tokenizer, request: GenerationRequest) -> Completion:
    """What a request gives when nobody else is there."""
    request = dataclasses.replace(request, deadline_s=None, prompt_bound=None)
    *_, last = generate(executor, tokenizer, request, time.monotonic)
    assert isinstance(last, Completed)
    return last.completion


def drained(executor: MeshExecutor, tokenizer: Tokenizer) -> None:
    """Let what an engine that was stopped left in the pipeline leave it."""
    engine = OfflineEngine(executor, tokenizer, time.monotonic)
    engine.add(ask(0, 4, 2))
    while engine.busy:
        engine.step()
