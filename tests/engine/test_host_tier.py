"""Requests whose pages went to host memory and came back give the tokens that they give alone, on the real runtime."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from medha_jax.config import SchedulerConfig
from medha_jax.engine import Completed, Engine, scheduler_for
from medha_jax.engine.executor import Executor
from medha_jax.engine.loop import OnError
from medha_jax.engine.output import text_outputs
from medha_jax.plan import PageCopy
from medha_jax.runtime import MeshExecutor
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.text import Tokenizer
from tests.engine.test_preemption import (
    PREEMPTIVE,
    SAMPLED,
    WAYS,
    alone,
    assert_same,
    interrupted,
    made,
    request,
    serve,
)

TIERED = dataclasses.replace(PREEMPTIVE, prefix_cache=True)


@functools.cache
def hosted(kvp: int, spp: int) -> MeshExecutor:
    """A runtime with room on the host. Tests leave no request behind, and each engine begins with an empty tier."""
    return made(host_kv_gib=2**-10, kvp=kvp, spp=spp)


def engine_of(
    executor: Executor,
    tokenizer: Tokenizer,
    clock: Callable[[], float],
    config: SchedulerConfig,
    on_error: OnError | None = None,
) -> Engine:
    """An engine to which a page that comes back is cheaper than its tokens."""
    model = LinearTimeModel(tokens=1e-3)
    scheduler = scheduler_for(executor, config, model)
    return Engine(executor, scheduler, model, clock, text_outputs(tokenizer, keep_logprobs=True), on_error=on_error)


class Watched:
    """An executor that counts its copies, and fails in the one with a number."""

    def __init__(self, executor: MeshExecutor, fails: int = -1) -> None:
        self._executor, self._fails = executor, fails
        self.calls = 0
        self.copies: list[PageCopy] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def copy_pages(self, copies: Sequence[PageCopy]) -> None:
        self.calls += 1
        self.copies += copies
        self._executor.copy_pages(copies)
        if self.calls == self._fails:
            self._executor._lost = True
            raise RuntimeError("the copy failed")

    @property
    def restored(self) -> int:
        return sum(not copy.to_host for copy in self.copies)


@WAYS
@pytest.mark.parametrize("kvp", [1, 2])
def test_it_may_lose_its_pages_at_any_token_to_the_host(
    kvp: int, sampling: dict[str, Any], byte_tokenizer: Tokenizer
) -> None:
    executor = Watched(hosted(kvp, 1))
    wanted, single = interrupted(executor, byte_tokenizer, sampling)
    urgent = request(2, 240, 2, 1.0, temperature=0)
    for tick in range(1, 26):
        before = executor.restored
        got, _ = serve(executor, byte_tokenizer, [(0, wanted), (tick, urgent)], TIERED, engine_of)
        assert got.preemptions == (tick <= len(single.token_ids))
        assert_same(got, single)
        if tick < len(single.token_ids) and kvp == 1:
            assert executor.restored > before, "its pages came back"
            assert sum(got.chunks) < 200, "and were not computed again"


@pytest.mark.parametrize("spp", [1, 2])
@pytest.mark.parametrize("kvp", [1, 2])
def test_a_prefix_that_was_evicted_comes_back(kvp: int, spp: int, byte_tokenizer: Tokenizer) -> None:
    executor = Watched(hosted(kvp, spp))
    engine = engine_of(executor, byte_tokenizer, lambda: 0.0, config=TIERED)
    prompts = [request(number, 120, 6, 1000.0, **SAMPLED[number % 3]) for number in range(5)]
    expected = [alone(executor, byte_tokenizer, wanted).token_ids for wanted in prompts]
    for wanted, tokens in zip([*prompts, *prompts], expected * 2, strict=True):  # five need more pages than there are
        number = engine.add(wanted)
        done = run(engine)
        assert done[number].token_ids == tokens
    assert done[number].cached_tokens == 112
    assert executor.restored > 0
    host = engine.load.host
    assert host.restored == executor.restored and host.stored == len(executor.copies) - executor.restored


def run(engine: Engine) -> dict[int, Any]:
    done = {}
    while engine.busy:
        done.update((of, event.completion) for of, event in engine.step() if isinstance(event, Completed))
    return done


def test_it_may_be_cancelled_at_any_copy(byte_tokenizer: Tokenizer) -> None:
    executor = Watched(hosted(1, 1))
    slowly = dataclasses.replace(TIERED, slice_s=1e-9)  # a page in each plan
    wanted, other = request(1, 120, 6, 1000.0, temperature=0), request(2, 220, 6, 10.0, temperature=0)
    expected = [alone(executor, byte_tokenizer, one).token_ids for one in (wanted, other)]
    most = 0
    for steps in range(14):
        engine = engine_of(executor, byte_tokenizer, lambda: 0.0, config=slowly)
        for one, tokens in zip((wanted, other), expected, strict=True):
            number = engine.add(one)
            assert run(engine)[number].token_ids == tokens
        before = executor.restored
        number = engine.add(wanted)
        for _ in range(steps):
            engine.step()
        most = max(most, executor.restored - before)
        engine.cancel(number)
        again = engine.add(wanted)
        assert run(engine)[again].token_ids == expected[0]
        assert sum(engine.load.free_pages) == executor.sizes.pages
    assert most == 6, "one of its seven full pages was still on the device"


def test_a_copy_that_fails_costs_work_but_no_token(byte_tokenizer: Tokenizer) -> None:
    executor = Watched(hosted(1, 1), fails=3)
    errors: list[Exception] = []
    engine = engine_of(executor, byte_tokenizer, lambda: 0.0, config=TIERED, on_error=errors.append)
    prompts = [request(number, 120, 6, 1000.0, temperature=0) for number in range(4)]
    expected = [alone(executor, byte_tokenizer, wanted).token_ids for wanted in prompts]
    for wanted, tokens in zip([*prompts, *prompts], expected * 2, strict=True):
        number = engine.add(wanted)
        done = run(engine)
        assert number not in done or done[number].token_ids == tokens
    assert len(errors) == 1
    assert sum(engine.load.free_pages) == executor.sizes.pages
