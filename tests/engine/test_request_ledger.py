"""Every request that was accepted is open or has ended in one way, at every moment of any life."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig, SchedulerConfig
from medha_jax.engine import (
    Completed,
    Engine,
    EngineService,
    ErrorLog,
    Failed,
    GenerationRequest,
    NewTokens,
    Queued,
    QueueFullError,
    scheduler_for,
)
from medha_jax.plan import InvalidRequestError, SamplingParams, StepPlan
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.simulate.counted_output import CountedOutput
from medha_jax.simulate.executor import SimulatedExecutor
from medha_jax.simulate.times import SummedTimes
from tests.engine.serving import Heard

CONTEXT = 128
TICK_S = 5e-4
MESH = MeshConfig(page_size=4, buckets=Buckets(decode=(4,), prefill=(16,), slices=(), chunks=4))
SIZES = RuntimeConfig(mesh=MESH, slots=4, pool_tokens=256, compilation_cache=None)
QUEUE = SchedulerConfig(max_waiting=6, prefix_cache=False)


class WallClock:
    """The machine's clock, which a simulated tick waits for."""

    def __call__(self) -> float:
        return time.perf_counter()

    def advance_to(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds - time.perf_counter()))


class Unreliable(SimulatedExecutor):
    """Fails when it is told to."""

    failing = False

    def submit(self, plan: StepPlan) -> Any:
        if plan.chunks and self.failing:
            self.failing = False
            raise RuntimeError("told to fail")
        return super().submit(plan)


class Life:
    """A service, what was asked of it, and what must be true of its counts."""

    def __init__(self) -> None:
        clock, model = WallClock(), LinearTimeModel(fixed=TICK_S)
        self.executor = Unreliable(SIZES, CONTEXT, SummedTimes(model), clock, vocab=100)
        scheduler = scheduler_for(self.executor, QUEUE, model)
        engine = Engine(self.executor, scheduler, model, clock, CountedOutput, on_error=ErrorLog(clock))
        self.heard, self.clock = Heard(), clock
        self.service = EngineService(engine, self.heard, clock)
        self.accepted: list[int] = []
        self.parts: dict[int, int] = {}  # tokens that each prompt in parts may still have
        self.cancelled: set[int] = set()
        self.outputs: dict[int, int] = {}  # of each accepted request

    def ask(self, prompt: int, output: int, **more: Any) -> None:
        sampling = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
        try:
            number = self.service.submit(GenerationRequest([5] * prompt, sampling, **more))
        except (InvalidRequestError, QueueFullError):
            return
        self.accepted.append(number)
        self.outputs[number] = more.get("n", 1)
        if "prompt_bound" in more:
            self.parts[number] = more["prompt_bound"] - prompt

    def cancel(self, number: int) -> None:
        before = self.check().failed["cancelled"]
        self.service.cancel(number)
        after = self.check().failed["cancelled"]
        assert after - before in (0, 1)
        if after > before:
            assert number not in self.cancelled, "it counts once"
            self.cancelled.add(number)
        self.service.cancel(number)
        assert self.check().failed["cancelled"] == after

    def check(self) -> Any:
        load = self.service.load()
        counts = load.counts
        ended = sum(counts.completed.values()) + sum(counts.failed.values())
        assert counts.accepted == len(self.accepted) == ended + load.running + load.waiting, load
        assert load.running >= 0 and load.waiting >= 0
        tenants = load.by_tenant.values()
        assert sum(one.running + one.waiting for one in tenants) == load.running + load.waiting
        assert all(one.running >= 0 and one.waiting >= 0 for one in tenants)
        assert sum(one.waiting_tokens for one in tenants) <= load.waiting_tokens  # those of cancelled ones are there
        return counts

    def do(self, what: str, first: int, second: int) -> None:
        match what:
            case "ask":
                self.ask(1 + first, 1 + second % 30, tenant="ab"[second % 2])
            case "ask for several":
                self.ask(1 + first, 1 + second % 30, n=2 + second % 3)
            case "never fits":
                self.ask(CONTEXT + first, 1)
            case "drop":
                deadline = self.clock() + second * TICK_S / 4
                self.ask(1 + first, 1 + second % 30, deadline_s=deadline, on_deadline="drop")
            case "parts":
                self.ask(1 + first % 20, 5, prompt_bound=1 + first % 20 + second)
            case "extend" if self.parts:
                number = sorted(self.parts)[first % len(self.parts)]
                some = min(second, self.parts[number])
                self.parts[number] -= some
                self.service.extend(number, [6] * some, done=second % 2 == 0)
            case "cancel" if self.accepted:
                self.cancel(self.accepted[first % len(self.accepted)])
            case "cancel the last" if self.accepted:
                self.cancel(self.accepted[-1])
            case "fail":
                self.executor.failing = True
            case "rest":
                time.sleep(second * TICK_S / 4)

    def end(self, stop: bool) -> None:
        """Let everything end, or stop it; then what was heard is what was counted."""
        for number in self.parts if not stop else ():
            self.service.extend(number, (), done=True)
        assert stop or self.service.drain(30)
        self.service.stop()
        counts, load = self.check(), self.service.load()
        assert load.running == load.waiting == 0 and not load.by_tenant
        completed, failed = Counter[str](), Counter[str]({"cancelled": len(self.cancelled)})
        for number in self.accepted:
            results = []
            for index in range(self.outputs.get(number, 1)):
                events = self.heard.events.get(number + index, [])
                ends = [event for event in events if isinstance(event, Completed | Failed)]
                assert len(ends) <= 1 and ends == events[len(events) - len(ends) :]
                assert not events or isinstance(events[0], Queued | Failed)
                outputs = [event for event in events if isinstance(event, NewTokens)]
                assert [event.first is not None for event in outputs] == [not index, *[False] * (len(outputs) - 1)][
                    : len(outputs)
                ]
                results += ends
                if ends and isinstance(ends[0], Completed) and not index:
                    assert outputs[0].first.ttft_s == pytest.approx(ends[0].completion.ttft_s)
            failures = [end for end in results if isinstance(end, Failed)]
            totals = [end.request for end in results if isinstance(end, Completed) and end.request is not None]
            assert len(failures) + len(totals) == (number not in self.cancelled), "a request ends once"
            assert failures or number in self.cancelled or len(results) == self.outputs.get(number, 1)
            for total in totals:
                completed[total.finish_reason] += 1
            for failure in failures:
                failed[failure.reason] += 1
        assert +Counter(counts.completed) == +completed and +Counter(counts.failed) == +failed


ACTIONS = [
    "ask",
    "ask",
    "ask for several",
    "never fits",
    "drop",
    "parts",
    "extend",
    "cancel",
    "cancel the last",
    "fail",
    "rest",
    "rest",
]


@settings(max_examples=40)
@given(
    steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 59), st.integers(0, 59)), max_size=40),
    stop=st.booleans(),
)
def test_counts_add_up_at_every_moment_of_random_lives(steps: list[tuple[str, int, int]], stop: bool) -> None:
    logging.disable(logging.CRITICAL)  # the failures that it is told to have
    life = Life()
    life.service.start()
    try:
        for step in steps:
            life.do(*step)
            life.check()
        life.end(stop)
    finally:
        life.service.stop()
        logging.disable(logging.NOTSET)


def test_a_cancellation_counts_at_once_while_the_engine_rests() -> None:
    life = Life()
    life.service.start()
    try:
        life.ask(10, 100, prompt_bound=50)  # waits for the rest of its prompt
        life.heard.until(lambda: 0 in life.heard.events)
        time.sleep(20 * TICK_S)
        life.cancel(0)
        assert life.check().failed["cancelled"] == 1
        assert (life.service.load().running, life.service.load().waiting) == (0, 0)
    finally:
        life.service.stop()


def test_a_listener_that_fails_ends_every_request_in_the_counts() -> None:
    life = Life()

    def fail(events: object) -> None:
        raise ValueError("a listener that fails")

    life.service._listener = fail
    life.service.start()
    life.ask(3, 4)
    assert life.service.drain(10)
    assert life.check().failed["internal"] == 1 and not life.service.healthy
    life.service.stop()


def test_the_time_to_the_first_token_begins_when_the_call_came() -> None:
    life = Life()
    life.service.start()
    try:
        sampling = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
        number = life.service.submit(GenerationRequest([5], sampling), life.clock() - 3)
        life.accepted.append(number)
        completion = life.heard.completion(number)
        (first,) = (event.first for event in life.heard.events[number] if isinstance(event, NewTokens) and event.first)
        assert 3 < first.ttft_s < 10 and first.ttft_s == pytest.approx(completion.ttft_s)
        assert first.queue_s > 3
    finally:
        life.service.stop()
