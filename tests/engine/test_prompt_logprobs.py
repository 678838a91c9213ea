"""Log-probabilities of a prompt's own tokens are those of one full pass, however the prompt is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from medha_jax.config import Buckets, SchedulerConfig
from medha_jax.engine import (
    Completed,
    Engine,
    Failed,
    GenerationRequest,
    PromptScored,
    generation,
    scheduler_for,
    text_outputs,
)
from medha_jax.engine.offline import OFFLINE
from medha_jax.plan import InvalidRequestError, SamplingParams, TokenResult
from medha_jax.runtime import MeshExecutor
from medha_jax.scheduler.request import Slo
from medha_jax.scheduler.time_model import LinearTimeModel, TimeModel
from medha_jax.text import Tokenizer
from tests.small import small_executor

# 250 entries divide by no layout, so that shares of the vocabulary are padded
MODEL = {"num_hidden_layers": 4, "vocab_size": 250}
TICKS = LinearTimeModel()
# Ticks have a price and slices none: every prompt that does not end in its first tick runs in slices.
SLICES = LinearTimeModel(tokens=1e-3, of_slices=LinearTimeModel(rows=0.04))
PREEMPTIVE = dataclasses.replace(OFFLINE, policy="edf", preemption=True, bypass_s=1000.0)
LAYOUTS = [(1, 1, 1), (2, 2, 1), (1, 1, 2), (2, 2, 2)]


def runtime(tp: int = 1, spp: int = 1, kvp: int = 1, **settings: Any) -> MeshExecutor:
    own = Buckets(decode=(4,), prefill=(64,), slices=(48,), chunks=4, mixed_only=True)
    shared = Buckets(decode=(4,), prefill=(64,), slices=(32,), chunks=2, mixed_only=True)
    stated = dict(tokens_per_group=None if kvp == 1 else 128, pool_tokens=1024, prompt_logprobs=True) | settings
    return small_executor(MODEL, tp=tp, spp=spp, kvp=kvp, buckets=own, shared_buckets=shared, **stated)


def ids_of(seed: int, length: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, MODEL["vocab_size"], length).tolist())


def ask(ids: Sequence[int], top: int | None = 5, n: int = 1, tokens: int = 3, **stated: Any) -> GenerationRequest:
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, prompt_logprobs=top)
    return GenerationRequest(ids, sampling, n=n, **stated)


class Run:
    """An engine and what its requests got; all of its events are checked for their order."""

    def __init__(
        self,
        executor: Any,
        tokenizer: Tokenizer,
        model: TimeModel = TICKS,
        config: SchedulerConfig = OFFLINE,
        **callbacks: Any,
    ) -> None:
        self.clock = 0
        scheduler = scheduler_for(executor, config, model)
        outputs = text_outputs(tokenizer)
        self.engine = Engine(executor, scheduler, model, lambda: float(self.clock), outputs, **callbacks)
        self.scored: dict[int, list[PromptScored]] = {}
        self.ends: dict[int, Any] = {}
        self._begun: set[int] = set()

    def step(self) -> None:
        self.clock += 1
        for number, event in self.engine.step():
            if isinstance(event, PromptScored):
                assert number not in self._begun, "they come before the first token"
                parts = self.scored.setdefault(number, [])
                assert event.scores.start == 1 + sum(len(part.scores.ids) for part in parts), "in order, each once"
                parts.append(event)
            else:
                self._begun |= {number} if type(event).__name__ in ("NewTokens", "Completed") else set()
            if isinstance(event, (Completed, Failed)):
                self.ends[number] = event

    def finish(self) -> None:
        while self.engine.busy:
            self.step()
            assert self.clock < 3000

    def scores(self, number: int) -> tuple[np.ndarray, ...]:
        """Ids, log-probabilities, and the likeliest with theirs."""
        parts = [event.scores for event in self.scored[number]]
        names = ("ids", "logprobs", "top_ids", "top_logprobs")
        return tuple(np.concatenate([getattr(part, name) for part in parts]) for name in names)


@pytest.fixture(scope="module")
def plain() -> MeshExecutor:
    """One device, which computes a prompt in one chunk and returns the logits of its last row."""
    return small_executor(MODEL, buckets=Buckets(decode=(1,), prefill=(256,), chunks=1, slices=()))


def full(plain: MeshExecutor, tokenizer: Tokenizer, ids: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """Log-probabilities `[positions, vocab]` of the token at each position, of prompts that end right before it."""
    kept: dict[int, TokenResult] = {}
    run = Run(plain, tokenizer, on_result=lambda number, result: kept.__setitem__(number, result))
    numbers = [run.engine.add(ask(ids[:position], None, tokens=1)) for position in positions]
    run.finish()
    logits = np.stack([kept[number].logits for number in numbers]).astype(np.float64)
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def agree(
    run: Run, number: int, ids: Sequence[int], top: int, plain: MeshExecutor, tokenizer: Tokenizer, every: int = 7
) -> None:
    """Compare with single prompts, at the first, the last and every so many positions."""
    got, logprobs, tops, their = run.scores(number)
    assert got.tolist() == list(ids[1:]) and tops.shape == their.shape == (len(ids) - 1, top)
    positions = sorted({1, *range(2, len(ids), every), len(ids) - 1})
    wanted = full(plain, tokenizer, ids, positions)
    rows, at = np.arange(len(positions)), np.array(positions) - 1
    np.testing.assert_allclose(logprobs[at], wanted[rows, got[at]], rtol=0, atol=1e-4)
    order = np.argsort(-wanted, axis=-1, kind="stable")[:, :top]
    np.testing.assert_allclose(their[at], np.take_along_axis(wanted, order, -1), rtol=0, atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(wanted, tops[at], -1), their[at], rtol=0, atol=1e-4)
    assert all(len(set(row)) == top for row in tops.tolist())


@pytest.mark.parametrize(("tp", "spp", "kvp"), LAYOUTS)
def test_every_layout_and_lane_gives_those_of_a_full_pass(
    tp: int, spp: int, kvp: int, plain: MeshExecutor, byte_tokenizer: Tokenizer
) -> None:
    executor = runtime(tp, spp, kvp)
    long, other, short = ids_of(1, 170), ids_of(2, 90), ids_of(3, 9)
    for model, chunks in ((TICKS, (1, 30, 64)), (SLICES, None)):
        run = Run(executor, byte_tokenizer, model)
        numbers = [
            run.engine.add(ask(long, 5, chunks=chunks)),
            run.engine.add(ask(other, None)),
            run.engine.add(ask(short, 0)),
            run.engine.add(ask((7,), 2)),
            run.engine.add(ask(other, 20, chunks=chunks)),
        ]
        run.finish()
        assert all(isinstance(run.ends[number], Completed) for number in numbers)
        agree(run, numbers[0], long, 5, plain, byte_tokenizer, 23)
        agree(run, numbers[2], short, 0, plain, byte_tokenizer)
        agree(run, numbers[4], other, 20, plain, byte_tokenizer, 23)
        assert numbers[1] not in run.scored and numbers[3] not in run.scored, "nobody asked; a lone token has none"
        assert run.ends[numbers[1]].completion.token_ids == run.ends[numbers[4]].completion.token_ids


@pytest.fixture(scope="module")
def scoring() -> MeshExecutor:
    return runtime(spp=2, pool_tokens=256)


def test_a_prompt_that_loses_its_pages_is_scored_once(
    scoring: MeshExecutor, plain: MeshExecutor, byte_tokenizer: Tokenizer
) -> None:
    config = dataclasses.replace(PREEMPTIVE, prefix_cache=True)
    run = Run(scoring, byte_tokenizer, config=config)
    ids = ids_of(4, 200)
    number = run.engine.add(ask(ids, 3, chunks=(16,), slo=Slo(ttft_s=5000.0)))
    for _ in range(6):
        run.step()
    assert 1 < len(run.scored[number]) < 10, "in the middle of its prompt"
    urgent = run.engine.add(ask(ids_of(5, 180), None, slo=Slo(ttft_s=20.0)))
    run.finish()
    assert isinstance(run.ends[urgent], Completed) and run.ends[number].completion.preemptions == 1
    agree(run, number, ids, 3, plain, byte_tokenizer, 31)


def test_outputs_share_the_scores_of_their_prompt_which_is_computed_for_them(
    scoring: MeshExecutor, plain: MeshExecutor, byte_tokenizer: Tokenizer
) -> None:
    run = Run(scoring, byte_tokenizer, config=dataclasses.replace(OFFLINE, prefix_cache=True))
    ids = ids_of(6, 64)
    before = run.engine.add(ask(ids, None))
    run.finish()
    number = run.engine.add(ask(ids, 1, n=2))
    run.finish()
    assert set(run.scored) == {number}, "the first output tells it"
    agree(run, number, ids, 1, plain, byte_tokenizer, 31)
    completions = [run.ends[one].completion for one in (before, number, number + 1)]
    assert [one.cached_tokens for one in completions] == [0, 0, 48], "the first one reads nothing from the cache"
    assert completions[0].token_ids == completions[1].token_ids


def test_a_prompt_in_parts_is_scored_as_it_comes(
    scoring: MeshExecutor, plain: MeshExecutor, byte_tokenizer: Tokenizer
) -> None:
    ids = ids_of(7, 100)
    run = Run(scoring, byte_tokenizer)
    number = run.engine.add(ask(ids[:40], 2, prompt_bound=150))
    for _ in range(5):
        run.step()
    assert run.scores(number)[0].tolist() == list(ids[1:40])
    run.engine.extend(number, ids[40:], False)
    for _ in range(5):
        run.step()
    run.engine.extend(number, (), True)
    run.finish()
    agree(run, number, ids, 2, plain, byte_tokenizer, 31)


def test_a_question_that_cannot_be_asked_ends_the_requests_that_asked(
    scoring: MeshExecutor, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = []
    run = Run(scoring, byte_tokenizer, on_error=errors.append)
    asked, other = run.engine.add(ask(ids_of(8, 30), 1)), run.engine.add(ask(ids_of(9, 100), None, tokens=20))

    def score(*_: object) -> object:
        raise RuntimeError("no room")

    monkeypatch.setattr(MeshExecutor, "score", score)
    run.finish()
    assert isinstance(run.ends[asked], Failed) and "no room" in str(errors[0])
    assert asked not in run.scored
    monkeypatch.undo()
    again = run.engine.add(ask(ids_of(8, 30), 1))
    run.finish()
    assert isinstance(run.ends[again], Completed) and len(run.scores(again)[0]) == 29
    assert other in run.ends


def test_a_runtime_that_was_not_made_for_it_refuses(plain: MeshExecutor, byte_tokenizer: Tokenizer) -> None:
    run = Run(plain, byte_tokenizer)
    with pytest.raises(InvalidRequestError, match="prompt_logprobs is 0; .* without --prompt-logprobs"):
        run.engine.add(ask(ids_of(1, 5), 0))
    with pytest.raises(InvalidRequestError, match=r"prompt_logprobs is 21; allowed is \[0, 20\]"):
        ask(ids_of(1, 5), 21)
    with pytest.raises(ValueError, match="not compiled to score"):
        plain.score(None, {})


def test_events_of_a_long_chunk_are_bounded(
    scoring: MeshExecutor, plain: MeshExecutor, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "MOST_SCORED", 20)
    run, ids = Run(scoring, byte_tokenizer), ids_of(10, 64)
    number = run.engine.add(ask(ids, 0))
    run.finish()
    assert [len(event.scores.ids) for event in run.scored[number]] == [20, 20, 20, 3]
    agree(run, number, ids, 0, plain, byte_tokenizer, 31)
