"""Outputs that follow a grammar: they do in every layout and after every interruption, and change nobody else's."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest

from medha_jax.config import Buckets, SchedulerConfig
from medha_jax.engine import Completed, Completion, EngineEvent, Failed, GenerationRequest, Slo
from medha_jax.engine.offline import OFFLINE
from medha_jax.grammar.grammar_compiler import GrammarCompiler
from medha_jax.grammar.matcher import Grammar, Matcher
from medha_jax.grammar.spec import GrammarError, GrammarSpec
from medha_jax.plan import InvalidRequestError, SamplingParams
from medha_jax.runtime import MeshExecutor
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.text import Tokenizer
from tests.engine.serving import Faulty, alone, engine_of
from tests.small import small_executor
from tests.text.tiny_tokenizers import byte_level

END = 1
MODEL = {"num_hidden_layers": 4, "vocab_size": 324}  # the tokenizer has 320 ids
SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["x", "yy", None]}, "maxItems": 3},
        "note": {"type": "string", "maxLength": 4},
    },
    "required": ["id", "tags", "note"],
    "additionalProperties": False,
}
CODE = "[A-Z]{3}-[0-9]{2,4}(!|[?]{2})"
LAYOUTS = [(1, 1, 1), (2, 2, 1), (1, 1, 2)]
# Ticks have a price and slices none: every prompt that does not end in its first tick runs in slices.
SLICES = LinearTimeModel(tokens=1e-3, of_slices=LinearTimeModel(rows=0.04))
PREEMPTIVE = dataclasses.replace(OFFLINE, policy="edf", preemption=True, bypass_s=1000.0)


def runtime(tp: int = 1, spp: int = 1, kvp: int = 1, **settings: Any) -> MeshExecutor:
    own = Buckets(decode=(8,), prefill=(64,), slices=(48,), chunks=4, mixed_only=True)
    shared = Buckets(decode=(4,), prefill=(64,), slices=(32,), chunks=2, mixed_only=True)
    stated = dict(tokens_per_group=None if kvp == 1 else 256, pool_tokens=2048) | settings
    return small_executor(MODEL, tp=tp, spp=spp, kvp=kvp, buckets=own, shared_buckets=shared, **stated)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(byte_level())


@pytest.fixture(scope="module")
def small() -> MeshExecutor:
    """Pages for 512 tokens, so that requests lose theirs to more urgent ones."""
    return runtime(pool_tokens=512)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(tokenizer.to_json, MODEL["vocab_size"], (END,))
    yield made
    made.close()


@pytest.fixture(scope="module")
def schema(compiler: GrammarCompiler) -> Grammar:
    return compiler.compile(GrammarSpec("json_schema", json.dumps(SCHEMA)))


@pytest.fixture(scope="module")
def code(compiler: GrammarCompiler) -> Grammar:
    return compiler.compile(GrammarSpec("regex", CODE))


def ask(seed: int, prompt: int, grammar: Grammar | None, tokens: int = 400, /, **stated: Any) -> GenerationRequest:
    """A request that samples, for random tokens."""
    own = {name: stated.pop(name) for name in ("n", "slo", "prompt_bound") if name in stated}
    always = {"temperature": 1.0, "seed": seed, "max_tokens": tokens, "ignore_eos": grammar is None}
    sampling = SamplingParams(**{**always, **stated})
    ids = tuple(np.random.default_rng(seed).integers(0, 256, prompt).tolist())
    return GenerationRequest(ids, sampling, eos_ids=(END,), grammar=grammar, **own)


def follows(completion: Completion) -> None:
    """Check an output that the schema was asked for."""
    assert completion.finish_reason == "stop" and completion.matched is None
    jsonschema.validate(json.loads(completion.text), SCHEMA)


class Run:
    """An engine, and how its requests ended."""

    def __init__(self, executor: Any, tokenizer: Tokenizer, config: SchedulerConfig = OFFLINE, **settings: Any) -> None:
        self.ticks = 0
        self.engine = engine_of(executor, tokenizer, config, lambda: float(self.ticks), **settings)
        self.ends: dict[int, EngineEvent] = {}

    def step(self) -> None:
        self.ticks += 1
        for number, event in self.engine.step():
            assert number not in self.ends, "nothing follows the last event"
            if isinstance(event, (Completed, Failed)):
                self.ends[number] = event

    def finish(self) -> None:
        while self.engine.busy:
            self.step()
            assert self.ticks < 5000

    def completion(self, number: int) -> Completion:
        end = self.ends[number]
        assert isinstance(end, Completed), end
        return end.completion


def same(left: Completion, right: Completion) -> None:
    names = ("token_ids", "text", "finish_reason", "matched")
    assert [getattr(left, name) for name in names] == [getattr(right, name) for name in names]


@pytest.mark.parametrize(("tp", "spp", "kvp"), LAYOUTS)
def test_every_layout_and_lane_follows_and_leaves_the_others_as_they_are(
    tp: int, spp: int, kvp: int, tokenizer: Tokenizer, schema: Grammar, code: Grammar, monkeypatch: Any
) -> None:
    executor = runtime(tp, spp, kvp)
    others = [ask(1, 220, None, 60, logprobs=3), ask(2, 9, None, 40, temperature=0, repetition_penalty=1.2)]
    wanted = [
        ask(3, 230, schema),
        ask(4, 5, schema, n=2),
        ask(5, 90, code, temperature=0, logprobs=2),
        ask(6, 30, code, presence_penalty=0.5, top_p=0.9, logit_bias=((40, 20.0),)),
    ]
    plain = Run(executor, tokenizer)
    numbers = [plain.engine.add(request) for request in others]
    plain.finish()
    expected = [plain.completion(number) for number in numbers]
    outputs: list[list[Completion]] = []
    for model in (None, SLICES):
        with monkeypatch.context() as patch:
            if model is not None:
                patch.setattr("tests.engine.serving.LinearTimeModel", lambda model=model: model)
            run = Run(executor, tokenizer)
        order = [wanted[0], others[0], wanted[1], others[1], *wanted[2:]]
        begun = [run.engine.add(request) for request in order]
        run.finish()
        for number, alone_ in zip((begun[1], begun[3]), expected, strict=True):
            same(run.completion(number), alone_)
        for number in (begun[0], begun[2], begun[2] + 1):
            follows(run.completion(number))
        for number in begun[4:]:
            assert run.completion(number).finish_reason == "stop"
            assert re.fullmatch(CODE, run.completion(number).text)
        outputs.append([run.completion(number) for number in (begun[0], begun[2], begun[2] + 1, *begun[4:])])
    for first, second in zip(*outputs, strict=True):
        same(first, second)
    single = dataclasses.replace(wanted[1], n=1, sampling=dataclasses.replace(wanted[1].sampling, seed=5))
    same(outputs[0][2], alone(executor, tokenizer, single))


def test_one_may_lose_its_pages_at_any_token(small: MeshExecutor, tokenizer: Tokenizer, schema: Grammar) -> None:
    wanted = ask(11, 120, schema, slo=Slo(ttft_s=5000.0))
    single = alone(small, tokenizer, wanted)
    follows(single)
    lost = 0
    for tick in range(1, len(single.token_ids) + 3, 5):
        run = Run(small, tokenizer, PREEMPTIVE)
        number = run.engine.add(wanted)
        for _ in range(tick):
            run.step()
        run.engine.add(ask(12, 480, None, 2, slo=Slo(ttft_s=1.0)))
        run.finish()
        same(run.completion(number), single)
        lost += run.completion(number).preemptions
    assert lost > 5


def test_one_goes_on_when_an_error_loses_the_state(small: MeshExecutor, tokenizer: Tokenizer, schema: Grammar) -> None:
    wanted = ask(21, 60, schema)
    executor, errors = Faulty(small), list[Exception]()
    executor.broken = True
    run = Run(executor, tokenizer, on_error=errors.append, ahead=1)
    number = run.engine.add(wanted)
    for _ in range(12):
        run.step()
    other = run.engine.add(ask(22, 10, None, 5))
    while not run.engine.scheduler.state(number).in_flight:  # until the next plan is the other one's alone
        run.step()
    executor.fail["submit"] = RuntimeError("no room")
    run.finish()
    assert errors and executor.failures == 1 and isinstance(run.ends[other], Failed)
    same(run.completion(number), alone(small, tokenizer, wanted))
    assert run.completion(number).preemptions == 1


def test_a_tick_ahead_waits_for_the_token_of_who_has_a_grammar_alone(
    small: MeshExecutor, tokenizer: Tokenizer, schema: Grammar
) -> None:
    wanted, other = ask(31, 20, schema), ask(32, 20, None, 60)
    ticks = {}
    for ahead in (0, 1):
        run = Run(small, tokenizer, ahead=ahead)
        number = run.engine.add(wanted)
        run.finish()
        same(run.completion(number), alone(small, tokenizer, wanted))
        ticks[ahead] = run.ticks
    tokens = len(run.completion(number).token_ids)
    assert ticks[0] == tokens and ticks[1] == 2 * tokens, "by itself each of its tokens is read before the next plan"
    run = Run(small, tokenizer, ahead=1)
    numbers = [run.engine.add(wanted), run.engine.add(other)]
    while numbers[1] not in run.ends:
        run.step()
    assert run.ticks == 61, "the other one has a token each tick, and the last is read one later"
    state = run.engine.scheduler.state(numbers[0])
    assert 29 <= len(state.generated) <= 31, "and who has a grammar one each second tick"
    run.finish()
    for number, request in zip(numbers, (wanted, other), strict=True):
        same(run.completion(number), alone(small, tokenizer, request))


def test_a_prompt_in_parts_has_its_grammar_once_it_is_complete(
    small: MeshExecutor, tokenizer: Tokenizer, schema: Grammar
) -> None:
    whole = ask(41, 100, schema)
    ids = whole.prompt_ids
    run = Run(small, tokenizer)
    number = run.engine.add(dataclasses.replace(whole, prompt_ids=ids[:40], prompt_bound=110))
    for _ in range(3):
        run.step()
    run.engine.extend(number, ids[40:], False)
    run.step()
    run.engine.extend(number, (), True)
    run.finish()
    same(run.completion(number), alone(small, tokenizer, whole))
    follows(run.completion(number))


def test_an_end_token_a_limit_and_a_stop_text_end_it_too(
    small: MeshExecutor, tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    free = compiler.compile(GrammarSpec("regex", "[ab]*"))
    ended = alone(small, tokenizer, ask(51, 8, free, logit_bias=((END, 3.0),)))
    assert (ended.finish_reason, ended.matched) == ("stop", END) and re.fullmatch("[ab]*", ended.text)
    limited = alone(small, tokenizer, ask(52, 8, free, 5, logit_bias=((END, -100.0),)))
    assert limited.finish_reason == "length" and re.fullmatch("[ab]{5}", limited.text)
    complete = alone(small, tokenizer, ask(53, 8, compiler.compile(GrammarSpec("regex", "[ab]{5}")), 5))
    assert (complete.finish_reason, complete.matched) == ("stop", None), "it is complete with its last token"
    stopped = alone(small, tokenizer, ask(54, 8, free, stop=("ab",), logit_bias=((END, -100.0),)))
    assert stopped.matched == "ab" and "ab" not in stopped.text
    lark = compiler.compile(GrammarSpec("grammar", 'start: "<" start ">" | "."'))
    (deeper,) = tokenizer.encode("<", add_special=False)
    nested = alone(small, tokenizer, ask(55, 8, lark, logit_bias=((deeper, 1.0),)))
    assert re.fullmatch("<*[.]>*", nested.text) and nested.text.count("<") == nested.text.count(">")


def test_log_probabilities_are_those_of_the_whole_vocabulary(
    small: MeshExecutor, tokenizer: Tokenizer, code: Grammar
) -> None:
    free = alone(small, tokenizer, ask(61, 30, None, 1, temperature=0, logprobs=5))
    bound = alone(small, tokenizer, ask(61, 30, code, temperature=0, logprobs=5))
    assert bound.logprobs[0].top == free.logprobs[0].top
    assert free.text[:1] != bound.text[:1] and re.match("[A-Z]", bound.text)


def test_one_that_cannot_go_on_ends_alone(
    small: MeshExecutor, tokenizer: Tokenizer, schema: Grammar, code: Grammar, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fill", "accept"):
        calls = []
        original = getattr(Matcher, name)

        def limited(self: Matcher, what: Any, original: Any = original, calls: list[int] = calls) -> None:
            if self._grammar is schema:
                calls.append(1)
                if len(calls) == 7:
                    raise GrammarError("the structured output cannot go on: a limit is reached")
            original(self, what)

        with monkeypatch.context() as patch:
            patch.setattr(Matcher, name, limited)
            run = Run(small, tokenizer)
            numbers = [run.engine.add(ask(71, 12, schema)), run.engine.add(ask(72, 12, code))]
            run.finish()
        end = run.ends[numbers[0]]
        assert isinstance(end, Failed) and end.reason == "grammar" and end.message.endswith("a limit is reached")
        same(run.completion(numbers[1]), alone(small, tokenizer, ask(72, 12, code)))
        assert sum(run.engine.load.free_pages) == small.sizes.pages and not run.engine.busy


def test_the_last_slot_keeps_its_mask_when_another_one_cannot_go_on(
    tokenizer: Tokenizer, schema: Grammar, code: Grammar, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, fill = runtime(slots=2), Matcher.fill
    original, written = executor.set_masks, list[int]()

    def limited(self: Matcher, mask: np.ndarray) -> None:
        if self._grammar is schema and run.ticks > 5:
            raise GrammarError("the structured output cannot go on: a limit is reached")
        fill(self, mask)

    def set_masks(slots: Any, masks: np.ndarray) -> None:
        written.extend(slots)
        original(slots, masks)

    monkeypatch.setattr(Matcher, "fill", limited)
    monkeypatch.setattr(executor, "set_masks", set_masks)
    run = Run(executor, tokenizer)
    run.engine.add(ask(73, 12, None, 2))  # has the first slot until the one with the code has the last
    other = run.engine.add(ask(72, 12, code))
    ends = run.engine.add(ask(71, 12, schema))
    run.finish()
    end = run.ends[ends]
    assert isinstance(end, Failed) and end.reason == "grammar"
    same(run.completion(other), alone(executor, tokenizer, ask(72, 12, code)))
    assert set(written) == {0, 1}


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"ignore_eos": True}, "ignore_eos goes on after the end"),
        ({"min_tokens": 2}, "min_tokens is 2; .* allowed is 0"),
        ({"allowed_token_ids": (65,)}, "allowed_token_ids may leave a structured output no token"),
    ],
)
def test_what_contradicts_a_grammar_is_refused(
    stated: dict[str, Any], message: str, small: MeshExecutor, tokenizer: Tokenizer, code: Grammar
) -> None:
    run = Run(small, tokenizer)
    with pytest.raises(InvalidRequestError, match=message):
        run.engine.add(ask(81, 5, code, **stated))
    with pytest.raises(InvalidRequestError, match="compiled for 9 token ids; the model has 324"):
        run.engine.add(ask(81, 5, dataclasses.replace(code, vocab=9)))
    assert not run.engine.busy
