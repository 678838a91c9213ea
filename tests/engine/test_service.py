from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from medha_jax.config import SchedulerConfig
from medha_jax.engine import (
    Completed,
    Engine,
    EngineService,
    ErrorLog,
    Failed,
    GenerationRequest,
    NewTokens,
    NotServingError,
    Queued,
    QueueFullError,
    Slo,
    TenantLoad,
)
from medha_jax.engine.loop import Events
from medha_jax.plan import InvalidRequestError, SamplingParams
from medha_jax.runtime import MeshExecutor
from medha_jax.text import Tokenizer
from tests.engine.serving import CONFIG, Faulty, Heard, alone, ask, drained, engine_of, serving


class Clock:
    """A clock that only its users move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def has_tokens(heard: Heard, number: int) -> bool:
    """Whether a request has its first token, so a tick has run for it."""
    return any(isinstance(event, NewTokens) for event in heard.events.get(number, []))


def test_requests_from_many_threads_get_what_they_get_alone(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    wanted = [ask(seed, 1 + 29 * seed % 170, 1 + seed % 7) for seed in range(24)]
    numbers: dict[int, int] = {}
    with serving(executor, byte_tokenizer) as (service, heard):

        def submit(seeds: range) -> None:
            for seed in seeds:
                numbers[seed] = service.submit(wanted[seed])

        threads = [threading.Thread(target=submit, args=(range(start, 24, 4),)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        got = [heard.completion(numbers[seed]) for seed in range(24)]
        assert service.drain(10)
        assert service.load().free_pages == (executor.sizes.pages,)
    assert sorted(numbers.values()) == list(range(24))
    assert heard.threads.isdisjoint({threading.get_ident()}) and len(heard.threads) == 1
    for seed, completion in enumerate(got):
        events = heard.events[numbers[seed]]
        assert isinstance(events[0], Queued)
        assert sum(isinstance(event, Queued | Completed | Failed) for event in events) == 2
        assert (
            tuple(t for event in events if isinstance(event, NewTokens) for t in event.token_ids)
            == completion.token_ids
        )
        assert completion.token_ids == alone(executor, byte_tokenizer, wanted[seed]).token_ids


def test_requests_without_a_seed_share_no_noise_and_each_can_be_had_again(
    executor: MeshExecutor, byte_tokenizer: Tokenizer
) -> None:
    with serving(executor, byte_tokenizer) as (service, heard):

        def answer(**stated: int) -> tuple[int, tuple[int, ...]]:
            number = service.submit(ask(1, 20, 12, temperature=1, **stated))
            tokens = heard.completion(number).token_ids
            queued = heard.events[number][0]
            assert isinstance(queued, Queued)
            return queued.seed, tokens

        drawn = [answer() for _ in range(6)]
        assert len({seed for seed, _ in drawn}) == len({tokens for _, tokens in drawn}) == 6
        for seed, tokens in drawn:
            assert answer(seed=seed) == (seed, tokens)
        assert answer(seed=0)[0] == 0


def test_a_completion_says_what_became_of_it(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    with serving(executor, byte_tokenizer, SchedulerConfig()) as (service, heard):
        prompt = ask(5, 100, 6)
        first = heard.completion(service.submit(prompt))
        # its first 6 pages of 16 tokens are found again
        late = GenerationRequest(prompt.prompt_ids, prompt.sampling, slo=Slo(ttft_s=1e-6))
        again = heard.completion(service.submit(late))
    assert (first.cached_tokens, again.cached_tokens) == (0, 96)
    assert again.token_ids == first.token_ids
    assert (first.chunks, again.chunks) == ((100,), (4,))
    assert (first.deadline_met, again.deadline_met) == (True, False)
    for timings in (first.timings, again.timings):
        assert 0 < timings.ttft_s < timings.e2e_s
        assert timings.ttft_s == pytest.approx(timings.queue_s + timings.prefill_s)
        assert timings.e2e_s == pytest.approx(timings.ttft_s + timings.decode_s)
        assert timings.tpot_s == pytest.approx(timings.decode_s / 5)


def test_a_submit_does_not_wait_for_a_tick(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    slow = Faulty(executor)
    slow.pause_s = 0.5
    with serving(slow, byte_tokenizer) as (service, heard):
        service.submit(ask(1, 10))
        heard.until(lambda: 0 in heard.events)
        started = time.monotonic()
        number = service.submit(ask(2, 10))
        assert service.load().waiting + service.load().running >= 1
        service.cancel(number)
        with pytest.raises(InvalidRequestError, match="the prompt is empty"):
            service.submit(GenerationRequest((), SamplingParams()))
        assert time.monotonic() - started < 0.2
        slow.pause_s = 0
        heard.completion(0)
        assert service.drain(10)
        assert number not in heard.events


def test_what_was_taken_is_told_before_the_tick_that_follows(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    slow = Faulty(executor)
    slow.hold()
    with serving(slow, byte_tokenizer) as (service, heard):
        accepted = service.submit(ask(1, 10))
        heard.until(lambda: accepted in heard.events)
        slow.until_held()  # its first tick still runs
        assert [type(event) for event in heard.events[accepted]] == [Queued]
        slow.release()
        assert heard.completion(accepted)


def test_a_refusal_is_told_before_the_tick_that_follows(
    executor: MeshExecutor, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Engine.begin

    def failing(self: Engine, number: int, *rest: Any) -> Queued:
        if number == 1:
            raise RuntimeError("no room in a table")
        return begin(self, number, *rest)

    monkeypatch.setattr(Engine, "begin", failing)
    slow = Faulty(executor)
    slow.hold()
    with serving(slow, byte_tokenizer) as (service, heard):
        service.submit(ask(0, 10, 400))
        slow.until_held()
        refused = service.submit(ask(1, 10))
        slow.release()
        slow.hold()
        assert isinstance(heard.end(refused), Failed)
        slow.release()


@pytest.mark.parametrize("tick_s, most", [(0.0, 1), (2.5, 32)])
def test_many_commands_at_once_delay_no_tick_for_long(
    executor: MeshExecutor, byte_tokenizer: Tokenizer, tick_s: float, most: int
) -> None:
    """Each command takes 8 ms of the clock: one a turn beside short ticks, a tenth of a long tick's time otherwise."""
    clock = Clock()
    order: list[int] = []
    engine = engine_of(executor, byte_tokenizer, clock=clock, on_error=ErrorLog(clock))
    begin, step = engine.begin, engine.step
    taken: list[int] = []  # commands before each tick

    def slow_begin(number: int, *rest: Any) -> Queued:
        clock.now += 1 / 128
        order.append(number)
        return begin(number, *rest)

    def slow_step() -> Events:
        taken.append(len(order) - sum(taken))
        clock.now += tick_s
        return step()

    heard = Heard()
    service = EngineService(engine, heard, clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "begin", slow_begin)
        patch.setattr(engine, "step", slow_step)
        numbers = [service.submit(ask(seed, 3, 1)) for seed in range(100)]
        service.start()
        for number in numbers:
            assert heard.completion(number)
        service.stop()
    assert order == numbers  # none is lost, and none overtakes another
    later = [count for count in taken if count][1:-1]
    assert later and set(later) == {most}


@pytest.mark.parametrize("ends", ["stops", "fails"])
def test_commands_that_are_left_for_later_turns_end_with_the_service(
    executor: MeshExecutor, byte_tokenizer: Tokenizer, ends: str
) -> None:
    clock = Clock()
    engine = engine_of(executor, byte_tokenizer, clock=clock, on_error=ErrorLog(clock))
    begin = engine.begin
    heard = Heard()

    def listener(events: Events) -> None:
        if ends == "fails":
            raise ValueError("nobody is there")
        heard(events)
        threading.Thread(target=service.stop).start()  # it waits for this thread

    service = EngineService(engine, listener, clock)

    def slow_begin(number: int, *rest: Any) -> Queued:
        clock.now += 0.01
        return begin(number, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "begin", slow_begin)
        numbers = [service.submit(ask(seed, 3, 400)) for seed in range(50)]
        service.start()
        service._thread.join(60)
    assert not service._thread.is_alive()
    counts = service.load().counts
    assert counts.accepted == 50 and sum(counts.failed.values()) == 50
    if ends == "stops":
        assert all(heard.events[number][-1] == Failed("stopped", "the engine was stopped") for number in numbers)
    else:
        drained(executor, byte_tokenizer)


def test_the_queue_is_limited_while_a_tick_runs(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    slow = Faulty(executor)
    config = SchedulerConfig(prefix_cache=False, max_waiting=12, max_waiting_tokens=200)
    with serving(slow, byte_tokenizer, config) as (service, heard):
        service.submit(ask(0, 10, 400))
        heard.until(lambda: has_tokens(heard, 0))
        slow.hold()
        slow.until_held()
        numbers = [service.submit(ask(seed, 10)) for seed in range(1, 13)]
        with pytest.raises(QueueFullError, match="12 requests wait; allowed are 12"):
            service.submit(ask(99, 10))
        for number in numbers[6:]:
            service.cancel(number)
        slow.release()
        for number in numbers[:6]:
            heard.completion(number)
        assert not set(numbers[6:]) & set(heard.events)


def test_the_tokens_that_wait_are_limited(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    slow = Faulty(executor)
    config = SchedulerConfig(prefix_cache=False, max_waiting_tokens=200)
    with serving(slow, byte_tokenizer, config) as (service, heard):
        service.submit(ask(0, 500, 400))  # alone it may have more
        heard.until(lambda: has_tokens(heard, 0))
        slow.hold()
        slow.until_held()
        service.submit(ask(1, 150))
        with pytest.raises(QueueFullError, match="with 150 tokens wait and this one has 60; allowed are 200 together"):
            service.submit(ask(2, 60))
        number = service.submit(ask(3, 50))
        slow.release()
        assert heard.completion(number)


def test_the_tokens_that_wait_are_limited_for_each_tenant(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    slow = Faulty(executor)
    config = SchedulerConfig(prefix_cache=False, max_tenant_waiting_tokens=200)
    with serving(slow, byte_tokenizer, config) as (service, heard):
        service.submit(ask(0, 10, 400, tenant="a"))
        heard.until(lambda: has_tokens(heard, 0))
        slow.hold()
        slow.until_held()
        numbers = [service.submit(ask(1, 300, tenant="a"))]  # alone it may have more
        with pytest.raises(QueueFullError, match="your requests with 300 tokens wait and this one has 1; each tenant"):
            service.submit(ask(2, 1, tenant="a"))
        numbers.append(service.submit(ask(3, 150, tenant="b")))
        with pytest.raises(QueueFullError, match="your requests with 150 tokens wait and this one has 60"):
            service.submit(ask(4, 60, tenant="b"))
        numbers += [service.submit(ask(5, 50, tenant=tenant)) for tenant in ("b", "")]
        loads = service.load().by_tenant
        assert loads == {"a": TenantLoad(1, 1, 300), "b": TenantLoad(0, 2, 200), "": TenantLoad(0, 1, 50)}
        slow.release()
        for number in numbers:
            heard.completion(number)
        number = service.submit(ask(6, 300, tenant="b"))
        heard.completion(number)


def test_a_drain_refuses_new_requests_and_waits_for_the_others(
    executor: MeshExecutor, byte_tokenizer: Tokenizer
) -> None:
    slow = Faulty(executor)
    slow.pause_s = 0.05
    with serving(slow, byte_tokenizer) as (service, heard):
        number = service.submit(ask(1, 10, 20))
        assert not service.drain(0.1)
        assert service.load().draining
        with pytest.raises(NotServingError):
            service.submit(ask(2, 10))
        assert service.drain(20)
        assert heard.completion(number)
        assert heard.events.keys() == {number}


def test_stopping_ends_what_runs(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    slow = Faulty(executor)
    slow.pause_s = 0.05
    with serving(slow, byte_tokenizer) as (service, heard):
        numbers = [service.submit(ask(seed, 10, 1000)) for seed in range(10)]
        heard.until(lambda: has_tokens(heard, numbers[0]))
        service.stop()
        for number in numbers:
            assert heard.events[number][-1] == Failed("stopped", "the engine was stopped")
        assert service.load().free_pages == (executor.sizes.pages,)
        assert (service.load().running, service.load().waiting) == (0, 0)
        with pytest.raises(NotServingError):
            service.submit(ask(2, 10))
        service.stop()


def test_an_idle_service_does_not_spin(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    with serving(executor, byte_tokenizer) as (service, heard):
        heard.completion(service.submit(ask(1, 10)))
        # a prompt that is not complete holds its pages, and nothing runs for it
        service.submit(ask(2, 40, prompt_bound=100))
        time.sleep(0.3)
        before = time.process_time()
        time.sleep(1.0)
        assert time.process_time() - before < 0.3
        assert service.load().running == 1


def test_a_listener_that_raises_ends_the_service(
    executor: MeshExecutor, byte_tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    def listener(events: object) -> None:
        raise ValueError("nobody is there")

    service = EngineService(engine_of(executor, byte_tokenizer), listener, time.monotonic)
    service.start()
    service.submit(ask(1, 10))
    service._thread.join(20)
    assert not service.healthy
    assert "nobody is there" in caplog.text
    with pytest.raises(NotServingError):
        service.submit(ask(1, 10))


def test_random_cancels_leave_nothing_behind(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(7)
    wanted = {seed: ask(seed, int(rng.integers(1, 300)), int(rng.integers(1, 20))) for seed in range(60)}
    with serving(executor, byte_tokenizer, CONFIG) as (service, heard):
        numbers = {seed: service.submit(request) for seed, request in wanted.items()}
        gone = {int(seed) for seed in rng.choice(60, 20, replace=False)}
        for seed in gone:
            time.sleep(float(rng.exponential(0.01)))
            service.cancel(numbers[seed])
        assert service.drain(60)
        load = service.load()
        assert (load.running, load.waiting, load.waiting_tokens) == (0, 0, 0)
        assert load.free_pages == (executor.sizes.pages,)
    for seed in set(wanted) - gone:
        got = heard.completion(numbers[seed])
        assert got.token_ids == alone(executor, byte_tokenizer, wanted[seed]).token_ids
