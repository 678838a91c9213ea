"""What an error in a tick ends, and what goes on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from medha_jax.config import SchedulerConfig
from medha_jax.engine import Completed, Failed, NotServingError, Queued
from medha_jax.engine.generation import Generation
from medha_jax.engine.recovery import MOST_IN_A_ROW
from medha_jax.runtime import MeshExecutor
from medha_jax.text import Tokenizer
from tests.engine.serving import Faulty, alone, ask, drained, serving
from tests.small import small_executor

FAILED = Failed("internal", "an internal error ended the request (ZeroDivisionError)")


@pytest.fixture(scope="module")
def pipeline() -> MeshExecutor:
    return small_executor(spp=2)


@pytest.mark.parametrize("place", ["submit", "collect"])
@pytest.mark.parametrize("stages", [1, 2])
def test_a_tick_that_raises_ends_its_requests_and_no_others(
    place: str, stages: int, executor: MeshExecutor, pipeline: MeshExecutor, byte_tokenizer: Tokenizer
) -> None:
    runtime = executor if stages == 1 else pipeline
    faulty = Faulty(runtime)
    faulty.pause_s = 0.02
    with serving(faulty, byte_tokenizer) as (service, heard):
        first = service.submit(ask(1, 20, 40))
        heard.until(lambda: len(heard.events.get(first, [])) > 4)
        waiting = [ask(2 + seed, 300, 5) for seed in range(4)]
        faulty.fail[place] = ZeroDivisionError("a program failed")
        numbers = [service.submit(request) for request in waiting]
        ends = {number: heard.end(number) for number in (first, *numbers)}
        assert FAILED in ends.values(), "the tick carried somebody"
        after = ask(50, 70, 8)
        assert heard.completion(service.submit(after)).token_ids == alone(runtime, byte_tokenizer, after).token_ids
        assert service.healthy
        assert service.drain(10)
        assert service.load().free_pages == (runtime.sizes.pages,)
    for number, request in zip(numbers, waiting, strict=True):
        end = ends[number]
        assert end == FAILED or isinstance(end, Completed)
        if isinstance(end, Completed):
            assert end.completion.token_ids == alone(runtime, byte_tokenizer, request).token_ids


def test_the_other_stages_go_on_when_a_plan_cannot_enter(pipeline: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    """One request is in the second stage when the plan of the other fails."""
    from tests.engine.serving import engine_of

    faulty, errors = Faulty(pipeline), list[Exception]()
    engine = engine_of(faulty, byte_tokenizer, on_error=errors.append)
    wanted = ask(1, 20, 6)
    first = engine.add(wanted)
    events = engine.step()
    second = engine.add(ask(2, 20, 6))
    faulty.fail["submit"] = ZeroDivisionError()
    events += engine.step()
    assert (second, FAILED) in events
    while engine.busy:
        events += engine.step()
    assert len(errors) == 1
    (end,) = (event for number, event in events if number == first and isinstance(event, (Completed, Failed)))
    assert isinstance(end, Completed)
    assert end.completion.token_ids == alone(pipeline, byte_tokenizer, wanted).token_ids
    assert sum(engine.load.free_pages) == pipeline.sizes.pages


@pytest.mark.parametrize("place", ["submit", "collect"])
@pytest.mark.parametrize("stages", [1, 2])
def test_what_others_had_is_computed_again_when_the_state_is_lost(
    place: str, stages: int, executor: MeshExecutor, pipeline: MeshExecutor, byte_tokenizer: Tokenizer
) -> None:
    """Slots for eight, twelve requests, some in their prompt and some in their output, and a prefix that was cached."""
    runtime = executor if stages == 1 else pipeline
    broken = Faulty(runtime)
    broken.pause_s, broken.broken = 0.02, True
    with serving(broken, byte_tokenizer, SchedulerConfig()) as (service, heard):
        heard.completion(service.submit(ask(0, 40, 5)))
        wanted = [
            ask(seed, 40 + 60 * (seed % 3), 12, repetition_penalty=1.3, temperature=seed % 2) for seed in range(12)
        ]
        numbers = [service.submit(request) for request in wanted]
        heard.until(lambda: any(len(heard.events.get(number, [])) > 3 for number in numbers))
        broken.fail[place] = ZeroDivisionError()
        ends = [heard.end(number) for number in numbers]
        assert 0 < ends.count(FAILED) <= 8
        assert service.healthy
        assert service.drain(10)
        assert service.load().free_pages == (runtime.sizes.pages,)
        assert (service.load().running, service.load().waiting) == (0, 0)
    survivors = [both for both in zip(wanted, numbers, ends, strict=True) if both[-1] != FAILED]
    assert survivors
    for request, number, end in survivors:
        queued = heard.events[number][0]
        assert isinstance(end, Completed) and isinstance(queued, Queued)
        request = dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, seed=queued.seed))
        assert end.completion.token_ids == alone(runtime, byte_tokenizer, request).token_ids


def test_a_state_that_is_lost_before_a_tick_has_run_ends_all_and_readiness(byte_tokenizer: Tokenizer) -> None:
    broken = Faulty(small_executor(spp=2))
    broken.pause_s, broken.broken = 0.02, True
    with serving(broken, byte_tokenizer) as (service, heard):
        numbers = [service.submit(ask(seed, 40, 500)) for seed in range(12)]
        heard.until(lambda: len(heard.events.get(numbers[0], [])) > 6)
        broken.fail = dict.fromkeys(("collect", "submit"), ZeroDivisionError())
        for number in numbers:
            assert heard.end(number) == FAILED
        assert service.drain(10)
        assert not service.healthy
        assert not service.load().healthy
        assert service.load().free_pages == (broken.sizes.pages,)
        assert (service.load().running, service.load().waiting) == (0, 0)
        with pytest.raises(NotServingError):
            service.submit(ask(1, 10))


class Always(dict[str, Exception]):
    """Faults that stay."""

    def pop(self, name: str, *default: Any) -> Any:
        return self.get(name, *default)


@pytest.mark.parametrize("place", ["submit", "collect"])
def test_one_failed_plan_after_the_other_ends_the_engine(
    place: str, executor: MeshExecutor, byte_tokenizer: Tokenizer
) -> None:
    faulty = Faulty(executor)
    with serving(faulty, byte_tokenizer) as (service, heard):
        for _ in range(2):  # a result in between, and the count begins again
            faulty.fail = Always({place: ZeroDivisionError()})
            for seed in range(MOST_IN_A_ROW):
                assert heard.end(service.submit(ask(seed, 10))) == FAILED
            faulty.fail = {}
            assert heard.completion(service.submit(ask(0, 10)))
        faulty.fail = Always({place: ZeroDivisionError()})
        for seed in range(MOST_IN_A_ROW + 1):
            assert service.fault is None
            assert heard.end(service.submit(ask(seed, 10))) == FAILED
        service._thread.join(20)
        assert service.fault == "an error made the engine unusable"
        with pytest.raises(NotServingError, match="an error made the engine unusable"):
            service.submit(ask(1, 10))
    drained(executor, byte_tokenizer)


class Panic(BaseException):
    """As a panic of Rust is in Python: no Exception."""


@pytest.mark.parametrize(
    ("kind", "place"),
    [(KeyError, "plan"), (Panic, "plan"), (Panic, "submit"), (Panic, "collect"), (Panic, "output")],
)
def test_what_ends_the_thread_or_the_scheduler_is_told_to_all_and_logged_once(
    kind: type[BaseException],
    place: str,
    executor: MeshExecutor,
    byte_tokenizer: Tokenizer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faulty = Faulty(executor)
    faulty.pause_s = 0.01
    with serving(faulty, byte_tokenizer) as (service, heard):
        numbers = [service.submit(ask(seed, 20, 1000)) for seed in range(12)]
        heard.until(lambda: any(len(heard.events.get(number, [])) > 4 for number in numbers))

        def fail(*given: Any) -> Any:
            raise kind("a defect")

        engine = service._engine
        whose = {"plan": engine.scheduler, "output": Generation}.get(place, faulty)
        monkeypatch.setattr(whose, {"output": "computed"}.get(place, place), fail)
        for number in numbers:
            end = heard.end(number)
            assert isinstance(end, Failed) and end.reason == "internal" and kind.__name__ in end.message
        service._thread.join(20)
        assert not service._thread.is_alive() and service.fault
        assert len(caplog.records) == 1
        assert (service.load().running, service.load().waiting, service.load().healthy) == (0, 0, False)
        assert service.load().counts.failed["internal"] == 12
        with pytest.raises(NotServingError, match=service.fault.replace("(", ".").replace(")", ".")):
            service.submit(ask(1, 10))
        assert service.drain(1)
        assert service.stop()
    monkeypatch.undo()
    drained(executor, byte_tokenizer)


def test_a_tick_that_does_not_end_is_given_up_by_who_watches(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    slow = Faulty(executor)
    slow.pause_s = 1.0
    with serving(slow, byte_tokenizer) as (service, heard):
        number = service.submit(ask(1, 10))
        began = time.monotonic()
        while service.watch(0.2) is None:
            assert time.monotonic() - began < 0.9
            time.sleep(0.02)
        assert service.fault == "a tick of the engine did not end within 0.2 s"
        assert (service.load().running, service.load().waiting, service.load().healthy) == (0, 0, False)
        assert service.drain(0)
        assert not service.stop(0.0)
        assert service.stop()
        assert not any(isinstance(event, Completed) for event in heard.events.get(number, []))
    drained(executor, byte_tokenizer)


def test_donated_state_that_is_gone_is_noticed() -> None:
    runtime = small_executor()
    assert runtime.usable()
    runtime._state.pool.delete()
    assert not runtime.usable()


def test_logits_that_are_not_numbers_end_only_their_request(byte_tokenizer: Tokenizer) -> None:
    """Token 255 has an embedding that is not a number."""
    runtime = small_executor()
    embedding = np.array(runtime._parameters["embedding"])
    embedding[255] = np.nan
    runtime._parameters["embedding"] = jax.device_put(embedding, runtime._parameters["embedding"].sharding)

    def without(seed: int, prompt: int, tokens: int) -> Any:
        request = ask(seed, prompt, tokens)
        ids: Sequence[int] = tuple(token % 255 for token in request.prompt_ids)
        return type(request)(ids, request.sampling)

    good = [without(seed, 50, 10) for seed in range(3)]
    poisoned = ask(9, 50)
    poisoned = type(poisoned)((*poisoned.prompt_ids[:-1], 255), poisoned.sampling)
    with serving(runtime, byte_tokenizer) as (service, heard):
        numbers = [service.submit(request) for request in good]
        bad = service.submit(poisoned)
        end = heard.end(bad)
        assert isinstance(end, Failed)
        assert end.reason == "not_finite"
        got = [heard.completion(number) for number in numbers]
        assert service.healthy
        assert service.drain(10)
        assert service.load().free_pages == (runtime.sizes.pages,)
    for request, completion in zip(good, got, strict=True):
        assert completion.token_ids == alone(runtime, byte_tokenizer, request).token_ids
