"""Several outputs of one request: each is what its seed gives alone, and they share the pages of their prompt."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest

from medha_jax.config import SchedulerConfig
from medha_jax.engine import Completed, Failed, OfflineEngine, QueueFullError, RequestTotals
from medha_jax.plan import MAX_SEED, InvalidRequestError, output_seed
from medha_jax.runtime import MeshExecutor
from medha_jax.text import Tokenizer
from tests.engine.serving import Faulty, alone, ask, serving
from tests.engine.test_preemption import PREEMPTIVE, request, runtime

CACHED = SchedulerConfig()
SALTED: dict[str, Any] = {"cache_salt": "a tenant"}
SAMPLED: dict[str, Any] = {"temperature": 0.9, "seed": MAX_SEED - 1, "frequency_penalty": 0.5, "logprobs": 2}
CASES = {
    "greedy": (CACHED, {"seed": 3}),
    "sampled, penalties, logprobs": (CACHED, SAMPLED),
    "a stop string": (CACHED, {"temperature": 1.0, "seed": 5, "stop": ("a", "e", "\n")}),
    "a salt": (CACHED, SAMPLED | SALTED),
    "without the prefix cache": (SchedulerConfig(prefix_cache=False), SAMPLED),
}


def test_the_seeds_of_outputs_follow_the_requests() -> None:
    assert [output_seed(7, index) for index in range(3)] == [7, 8, 9]
    assert [output_seed(MAX_SEED, index) for index in range(3)] == [MAX_SEED, 0, 1]


@pytest.mark.parametrize("case", CASES)
def test_each_output_is_what_its_seed_gives_alone(case: str, executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    config, stated = CASES[case]
    wanted = ask(1, 100, 20, n=4, **stated)
    with serving(executor, byte_tokenizer, config) as (service, heard):
        number = service.submit(wanted)
        got = [heard.completion(number + index) for index in range(4)]
        assert service.drain(10)
    for index, completion in enumerate(got):
        seed = output_seed(wanted.sampling.seed or 0, index)
        sampling = dataclasses.replace(wanted.sampling, seed=seed)
        single = alone(executor, byte_tokenizer, dataclasses.replace(wanted, n=1, sampling=sampling))
        assert (completion.token_ids, completion.text) == (single.token_ids, single.text)
        assert (completion.finish_reason, completion.matched) == (single.finish_reason, single.matched)
        shared = 96 if index and config.prefix_cache else 0  # its first six pages of 16 tokens
        assert (completion.cached_tokens, sum(completion.chunks)) == (shared, 100 - shared)
    assert (len({completion.token_ids for completion in got}) == 1) == (case == "greedy")
    ends = [event for index in range(4) for event in heard.events[number + index] if isinstance(event, Completed)]
    (total,) = [event.request for event in ends if event.request is not None]
    stopped = all(completion.finish_reason == "stop" for completion in got)
    tokens = sum(len(completion.token_ids) for completion in got)
    assert total == RequestTotals(100, 0, tokens, "stop" if stopped else "length", True)


def test_outputs_that_lose_their_pages_are_the_same(byte_tokenizer: Tokenizer) -> None:
    executor, tick = runtime(), 0
    wanted = dataclasses.replace(request(1, 100, 40, 5000.0, temperature=0.9, seed=7), n=2)
    urgent = request(2, 180, 30, 1000.0)
    config = dataclasses.replace(PREEMPTIVE, prefix_cache=True)
    engine = OfflineEngine(executor, byte_tokenizer, lambda: float(tick), config=config)
    engine.add(wanted)
    done = {}
    while engine.busy:
        for number, event in engine.step():
            if isinstance(event, Completed):
                done[number] = event.completion
        tick += 1
        if tick == 14:
            engine.add(urgent)
    assert sum(engine.load.free_pages) == executor.sizes.pages
    assert done[0].preemptions and done[1].preemptions and len(done) == 3
    for index in range(2):
        single = dataclasses.replace(request(1, 100, 40, 5000.0, temperature=0.9, seed=7 + index))
        assert done[index].token_ids == alone(executor, byte_tokenizer, single).token_ids


def test_pages_are_shared_while_they_run_and_nothing_is_left(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    slow = Faulty(executor)
    config = dataclasses.replace(CACHED, max_waiting=1)
    with serving(slow, byte_tokenizer, config) as (service, heard):

        def nothing_is_held() -> bool:
            load = service.load()
            both = load.running, load.waiting, load.waiting_tokens, load.used_slots
            return both == (0, 0, 0, 0) and load.free_pages == (executor.sizes.pages,)

        number = service.submit(ask(1, 100, 20, n=4))
        for index in range(4):
            heard.completion(number + index)
        assert service.drain(10) and nothing_is_held()
        # six full pages are shared; each has one more for the rest of the prompt, and a second one for its output
        assert max(report.held_pages[0] for report in heard.reports) == 6 + 4 * 2
        assert max(report.running for report in heard.reports) == 1

    with serving(slow, byte_tokenizer, config) as (service, heard):
        slow.pause_s = 0.05
        number = service.submit(ask(2, 100, 200, n=3))
        heard.until(lambda: len(heard.events.get(number + 2, ())) > 1)
        assert service.load().used_slots == 3 and service.load().running == 1
        waits = service.submit(ask(3, 100, 200, n=8))
        with pytest.raises(QueueFullError):
            service.submit(ask(4, 10, 2, n=2))
        assert service.load().counts.accepted == 2
        service.cancel(waits)
        service.cancel(number)
        counts = service.load().counts
        assert (counts.accepted, counts.failed["cancelled"]) == (2, 2)
        slow.pause_s = 0.0
        assert service.drain(10)
        heard_before = {output: len(heard.events[output]) for output in range(number, number + 3)}
        deadline = time.monotonic() + 10
        while not nothing_is_held():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert heard_before == {output: len(heard.events[output]) for output in range(number, number + 3)}


def test_if_one_output_fails_all_end(executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    slow = Faulty(executor)
    with serving(slow, byte_tokenizer, CACHED) as (service, heard):
        number = service.submit(ask(1, 40, 500, n=3))
        other = service.submit(ask(2, 40, 3))
        heard.completion(other)
        heard.until(lambda: len(heard.events.get(number + 2, ())) > 1)
        slow.fail["collect"] = RuntimeError("told to fail")
        heard.until(lambda: any(isinstance(batch[-1][1], Failed) for batch in heard.batches))
        assert service.drain(10)
        counts = service.load().counts
    failures = [event for events in heard.events.values() for event in events if isinstance(event, Failed)]
    assert [failure.reason for failure in failures] == ["internal"], "it is told once"
    assert (counts.accepted, counts.failed["internal"], counts.completed["length"]) == (2, 1, 1)


@pytest.mark.parametrize("n", [0, -1, 9, 2**40])
def test_other_numbers_of_outputs_are_refused(n: int, executor: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    with serving(executor, byte_tokenizer) as (service, _):
        with pytest.raises(InvalidRequestError, match=f"n is {n}; allowed are 1 to 8 outputs"):
            service.submit(ask(1, 10, n=n))
        with pytest.raises(InvalidRequestError, match="n is 2; a prompt that comes in parts has 1 output"):
            service.submit(ask(1, 10, n=2, prompt_bound=20))
        assert service.load().counts.accepted == 0
