"""Ticks and slices of a real engine under random requests, for the calibration of a simulator."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

from medha_jax.config import SchedulerConfig
from medha_jax.engine import (
    Completed,
    Engine,
    Executor,
    Failed,
    FittedTimeModel,
    GenerationRequest,
    TickReport,
    scheduler_for,
)
from medha_jax.plan import SamplingParams
from medha_jax.simulate.counted_output import CountedOutput

LEAST_PROMPT, MOST_OUTPUT = 2, 32
TOLD_EVERY = 5.0  # seconds


def measured_ticks(executor: Executor, seconds: float, seed: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run random requests with one to all slots in use, for `seconds`; record work and time of every tick and slice.

    `tell` takes a line of progress every few seconds. The ticks have the form of `medha_jax.simulate.calibration`.
    """
    rng, recorder, times = random.Random(seed), _Recorder(), FittedTimeModel({})
    scheduler = scheduler_for(executor, SchedulerConfig(prefix_cache=False), times)
    engine = Engine(executor, scheduler, times, time.perf_counter, CountedOutput, on_tick=recorder)
    end, told = time.perf_counter() + seconds, time.perf_counter()
    active, wanted = 0, 1
    while (now := time.perf_counter()) < end:
        while active < wanted:
            engine.add(_request(rng, executor.sizes.context, executor.vocab))
            active += 1
        before = active
        active -= sum(isinstance(event, Completed | Failed) for _, event in engine.step())
        if active < before:
            wanted = rng.randint(1, executor.config.slots)
        if now - told > TOLD_EVERY:
            told = now
            tell(f"{len(recorder.ticks):,} ticks, {end - now:.0f} s left")
    return recorder.ticks


class _Recorder:
    """Owns the recorded ticks; drops the first one of each shape."""

    def __init__(self) -> None:
        self.ticks: list[dict[str, Any]] = []
        self._seen: set[tuple[bool, tuple[int, ...]]] = set()
        self._ended = math.nan

    def __call__(self, report: TickReport) -> None:
        host, self._ended = report.started - self._ended, report.ended
        kind = report.layers is None, report.bucket
        if not report.timed or kind not in self._seen:
            self._seen.add(kind)
            return
        stages: list[list[Any]] = [[] for _ in range(1 + max((one.stage for one in report.chunks), default=0))]
        for one in report.chunks:
            stages[one.stage].append([one.start, one.length, list(one.groups)])
        tick = {
            "shape": list(report.bucket),
            "seconds": report.ended - report.started,
            "host_s": None if math.isnan(host) else host,
            "stages": stages,
        }
        self.ticks.append(tick if report.layers is None else tick | {"layers": list(report.layers)})


def _request(rng: random.Random, context: int, vocab: int) -> GenerationRequest:
    output = rng.randint(2, MOST_OUTPUT)
    prompt = round(math.exp(rng.uniform(math.log(LEAST_PROMPT), math.log(context - output))))
    ids = tuple(rng.randrange(vocab) for _ in range(prompt))
    return GenerationRequest(ids, SamplingParams(temperature=0, max_tokens=output, ignore_eos=True))
