"""A tick is planned and dispatched while the one before runs; what requests get stays the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medha_jax.config import Buckets, SchedulerConfig
from medha_jax.engine import Completed, Completion, GenerationRequest, NewTokens, Slo
from medha_jax.plan import SamplingParams
from medha_jax.runtime import MeshExecutor
from medha_jax.text import Tokenizer
from tests.engine.serving import Faulty, alone, ask, engine_of
from tests.small import small_executor

POLICY = SchedulerConfig(policy="edf", bypass_s=1000.0)


class Order(Faulty):
    """Notes how many ticks are dispatched and not read."""

    def __init__(self, executor: MeshExecutor) -> None:
        super().__init__(executor)
        self.unread = self.most = 0

    def submit(self, plan: Any) -> Any:
        self.unread += 1
        self.most = max(self.most, self.unread)
        return super().submit(plan)

    def collect(self, handle: Any) -> Any:
        self.unread -= 1
        return super().collect(handle)


def serve(
    executor: Any,
    tokenizer: Tokenizer,
    arrivals: list[tuple[int, GenerationRequest]],
    cancels: dict[int, int],
    ahead: int,
) -> tuple[dict[int, Completion], dict[int, list[int]], int]:
    """Requests that come, and are cancelled, at given ticks: completions, tokens that were reported, and ticks."""
    tick = 0
    engine = engine_of(executor, tokenizer, POLICY, clock=lambda: float(tick), ahead=ahead)
    waiting, done = list(arrivals), dict[int, Completion]()
    tokens: dict[int, list[int]] = {number: [] for number in range(len(arrivals))}
    while waiting or engine.busy:
        while waiting and waiting[0][0] <= tick:
            engine.add(waiting.pop(0)[1])
        for number, when in cancels.items():
            if when == tick:
                engine.cancel(number)
        for number, event in engine.step():
            assert number not in done, "nothing follows the last event"
            assert tick < cancels.get(number, tick + 1), "nothing is heard of a cancelled request"
            if isinstance(event, NewTokens):
                tokens[number] += event.token_ids
            if isinstance(event, Completed):
                done[number] = event.completion
        tick += 1
        assert tick < 3000
    assert sum(engine.load.free_pages) == executor.sizes.pages * executor.config.mesh.kvp
    assert engine.scheduler.stats.running == engine.scheduler.stats.waiting == 0
    return done, tokens, tick


@pytest.fixture(scope="module")
def small() -> MeshExecutor:
    """Pages for 400 tokens, so that requests lose theirs to more urgent ones."""
    return small_executor(
        pool_tokens=400, buckets=Buckets(decode=(8,), prefill=(64,), chunks=4, mixed_only=True, slices=()), slots=8
    )


@st.composite
def traffic(draw: st.DrawFn) -> tuple[list[tuple[int, GenerationRequest]], dict[int, int]]:
    count = draw(st.integers(1, 8))
    arrivals = []
    for _ in range(count):
        when, prompt, tokens = draw(st.integers(0, 30)), draw(st.integers(1, 150)), draw(st.integers(1, 25))
        sampling = SamplingParams(
            temperature=draw(st.sampled_from([0.0, 0.9])),
            seed=draw(st.integers(0, 99)),
            repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
            frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
            max_tokens=tokens,
            min_tokens=draw(st.integers(0, tokens)),
            stop_token_ids=tuple(range(0, draw(st.sampled_from([0, 250])), 16)),
        )
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        ids = tuple(rng.integers(0, 256, prompt).tolist())
        arrivals.append((when, GenerationRequest(ids, sampling, slo=Slo(ttft_s=draw(st.integers(1, 500))))))
    arrivals.sort(key=lambda arrival: arrival[0])
    numbers = st.sampled_from(range(count))
    cancels = draw(st.dictionaries(numbers, st.integers(1, 60), max_size=count))
    return arrivals, {number: when for number, when in cancels.items() if when > arrivals[number][0]}


@pytest.mark.usefixtures("for_many_ticks")
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(traffic())
def test_a_tick_ahead_changes_no_token(
    small: MeshExecutor, byte_tokenizer: Tokenizer, stated: tuple[list[tuple[int, GenerationRequest]], dict[int, int]]
) -> None:
    arrivals, cancels = stated
    order = Order(small)
    done, tokens, _ = serve(order, byte_tokenizer, arrivals, cancels, ahead=1)
    assert order.most <= 2
    assert order.unread == 0
    for number, (_, request) in enumerate(arrivals):
        single = alone(small, byte_tokenizer, request)
        if number in done:
            assert done[number].token_ids == single.token_ids
            assert (done[number].text, done[number].matched) == (single.text, single.matched)
        else:
            assert number in cancels
        assert tuple(tokens[number]) == single.token_ids[: len(tokens[number])]


@pytest.mark.parametrize("stages", [1, 2])
def test_tokens_are_planned_before_those_before_them_are_read(
    stages: int, small: MeshExecutor, byte_tokenizer: Tokenizer
) -> None:
    runtime = small
    if stages == 2:
        runtime = small_executor(spp=2)
    ticks = {}
    for ahead in (0, 1):
        order = Order(runtime)
        done, _, ticks[ahead] = serve(order, byte_tokenizer, [(0, ask(3, 64, 40))], {}, ahead)
        assert order.most == 1 + ahead
        assert done[0].token_ids == alone(runtime, byte_tokenizer, ask(3, 64, 40)).token_ids
    # one step more, in which the last tick is read: no tick waited for a token to be read
    assert ticks[1] == ticks[0] + 1


def test_a_stop_is_noticed_a_tick_late_and_what_follows_it_is_dropped(
    small: MeshExecutor, byte_tokenizer: Tokenizer
) -> None:
    end = alone(small, byte_tokenizer, ask(3, 64, 40)).token_ids[10]
    request = ask(3, 64, 40, eos_ids=(end,), ignore_eos=False)
    expected = alone(small, byte_tokenizer, request)
    assert expected.matched == end
    order = Order(small)
    done, tokens, _ = serve(order, byte_tokenizer, [(0, request)], {}, ahead=1)
    assert done[0].token_ids == expected.token_ids == tuple(tokens[0])
    assert order.collected == len(expected.token_ids) + 1


def test_requests_that_spread_over_groups_are_exact_ahead(byte_tokenizer: Tokenizer) -> None:
    runtime = small_executor(
        kvp=2,
        tokens_per_group=128,
        pool_tokens=256,
        buckets=Buckets(decode=(4,), prefill=(64,), chunks=4, mixed_only=True, slices=()),
        shared_buckets=Buckets(decode=(4,), prefill=(64,), chunks=2, mixed_only=True, slices=()),
    )
    arrivals = [
        (0, ask(1, 120, 30)),  # grows over the border while decoding
        (2, ask(2, 180, 20, frequency_penalty=0.5)),
        (5, ask(3, 30, 20, repetition_penalty=1.3)),
    ]
    done, _, _ = serve(runtime, byte_tokenizer, arrivals, {}, ahead=1)
    for number, (_, request) in enumerate(arrivals):
        assert done[number].token_ids == alone(runtime, byte_tokenizer, request).token_ids
