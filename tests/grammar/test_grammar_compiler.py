"""Grammars are compiled or refused with a reason, in time, and what their masks allow is what they describe."""

from __future__ import annotations

import gc
import json
import re
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from medha_jax.grammar import grammar_compiler
from medha_jax.grammar.grammar_compiler import GrammarCompiler
from medha_jax.grammar.matcher import Grammar
from medha_jax.grammar.spec import LONGEST_REASON, GrammarError, GrammarSpec
from medha_jax.plan import mask_words
from medha_jax.text import Tokenizer
from medha_jax.text.detokenizer import Detokenizer
from tests.text.tiny_tokenizers import byte_level, sentencepiece

VOCAB = 400  # of logits: more than either tokenizer has
TOKENIZERS = {"byte level": (byte_level, 1), "sentencepiece": (sentencepiece, 2)}
PATTERNS = [f"[{'abcdefgh'[: count % 8 + 1]}]{{{count},}}" for count in range(30)]
HOURS = {"allOf": [{"type": "string", "pattern": pattern} for pattern in PATTERNS]}


@pytest.fixture(scope="module", params=TOKENIZERS)
def made(request: Any) -> Iterator[tuple[GrammarCompiler, Tokenizer, int]]:
    backend, end = TOKENIZERS[request.param]
    tokenizer = Tokenizer(backend())
    compiler = GrammarCompiler(tokenizer.to_json, VOCAB, (end,))
    yield compiler, tokenizer, end
    compiler.close()


def schema(stated: Any) -> GrammarSpec:
    return GrammarSpec("json_schema", stated if isinstance(stated, str) else json.dumps(stated))


def text_of(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """The text of tokens that follow a prompt; alone, some tokenizers take a blank from its beginning."""
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("a"))
    return "".join([*map(detokenizer.push, tokens), detokenizer.finish()])


def walk(grammar: Grammar, end: int, seed: int, most: int = 300) -> list[int]:
    """Tokens drawn from the masks until the text is complete."""
    matcher, draw, tokens = grammar.matcher(), np.random.default_rng(seed), list[int]()
    mask = np.zeros(mask_words(VOCAB), np.uint32)
    while not matcher.ended and len(tokens) < most:
        matcher.fill(mask)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        assert len(allowed) and allowed[-1] < 360, "no id that the tokenizer lacks"
        token = int(draw.choice(allowed))
        if token == end:
            break
        matcher.accept(token)
        tokens.append(token)
    assert len(tokens) < most
    return tokens


@pytest.mark.parametrize("text", ["[A-Z]{2,5}(-[0-9]{1,3})?", "(été|東京|x)+y", "[^a]{3}z"])
def test_what_the_masks_allow_is_what_the_expression_describes(text: str, made: Any) -> None:
    compiler, tokenizer, end = made
    grammar = compiler.compile(GrammarSpec("regex", text))
    for seed in range(20):
        assert re.fullmatch(text, text_of(tokenizer, walk(grammar, end, seed)), re.DOTALL)


def test_schemas_hold_and_blanks_are_bounded(made: Any) -> None:
    compiler, tokenizer, end = made
    wanted = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 50}}, "required": ["a"]}
    grammar = compiler.compile(schema({**wanted, "additionalProperties": False}))
    for seed in range(20):
        text = text_of(tokenizer, walk(grammar, end, seed))
        value = json.loads(text)
        assert list(value) == ["a"] and value["a"] <= 50 and re.search(r"\s{33}", text) is None
    obj = compiler.compile(GrammarSpec("json_object"))
    matcher = obj.matcher()
    tokens = tokenizer.encode('{"b": [1, {"c": null}], "d": "東京"}', add_special=False)
    for token in tokens[tokenizer.decode(tokens[:1]) == "" :]:  # without the blank that some put before a text
        matcher.accept(token)
    assert matcher.ended
    with pytest.raises(GrammarError, match="cannot go on: "):
        obj.matcher().accept(tokenizer.encode("[", add_special=False)[-1])


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (schema("{"), "json_schema: EOF while parsing"),
        (schema("[1]"), "json_schema: "),
        (schema(False), "json_schema: Unsatisfiable schema: schema is false"),
        (schema({"type": "integer", "minimum": 5, "maximum": 3}), r"minimum \(5\) is greater than maximum \(3\)"),
        (schema({"$ref": "#"}), "json_schema: no text follows it"),
        (schema({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ."uniqueItems".'),
        (schema({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}), "Unimplemented keys"),
        (schema({"$ref": "https://example.org/schema"}), "json_schema: "),
        (schema("[" * 10000), "recursion limit exceeded|EOF"),
        (GrammarSpec("regex", "(ab"), "regex: .*unclosed group"),
        (GrammarSpec("regex", ""), "regex: only the empty text follows it"),
        (GrammarSpec("regex", "(?=a)b"), "look-ahead"),
        (GrammarSpec("grammar", "start: other"), 'unknown name: "other"'),
        (schema(HOURS), "not compiled within 2 s; give a simpler one"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(spec: GrammarSpec, reason: str, made: Any) -> None:
    compiler, _, _ = made
    for refuse in (compiler.compile, compiler.known):  # once it is known, it is not compiled again
        with pytest.raises(GrammarError, match=reason) as refused:
            refuse(spec)
        assert len(str(refused.value)) <= LONGEST_REASON and "\n" not in str(refused.value)
    assert compiler.compile(GrammarSpec("regex", "ab")).vocab == VOCAB, "and others go on"


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("regex", "a" * 4097, "regex has 4097 bytes; allowed are 4096"),
        ("json_schema", "é" * 32769, "json_schema has 65538 bytes; allowed are 65536"),
        ("grammar", "\ud800", "grammar is not valid Unicode"),
        ("xml", "", "of kind 'xml'; allowed are json_schema, json_object, regex, grammar"),
    ],
)
def test_texts_are_bounded(kind: Any, text: str, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason):
        GrammarSpec(kind, text)


def test_the_latest_grammars_are_kept(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, _, _ = made
    monkeypatch.setattr(grammar_compiler, "KEPT", 2)
    specs = [GrammarSpec("regex", f"kept{number}") for number in range(3)]
    first = compiler.compile(specs[0])
    assert compiler.compile(specs[0]) is first is compiler.known(specs[0])
    for spec in specs[1:]:
        compiler.compile(spec)
    assert compiler.known(specs[0]) is None and compiler.known(specs[2]) is not None
    monkeypatch.undo()
    assert compiler.compile(specs[0]) is not first


@pytest.mark.parametrize("text", ["[", "(?=a)b"])
def test_a_refused_grammar_keeps_nothing_of_who_asked_for_it(text: str, made: Any) -> None:
    """A request's prompt may have hundreds of megabytes, and 128 refusals are remembered."""

    class Prompt:
        """Stands for what a caller holds."""

    def ask() -> weakref.ref[Prompt]:
        prompt = Prompt()
        for _ in range(2):
            with pytest.raises(GrammarError):
                made[0].compile(GrammarSpec("regex", text))
        return weakref.ref(prompt)

    held = ask()
    gc.collect()
    assert held() is None


def test_one_that_was_not_compiled_in_time_is_tried_again_after_a_minute() -> None:
    """A machine that had too much to do refuses no grammar for good."""
    now, spec = [0.0], GrammarSpec("regex", "late[0-9]")
    compiler = GrammarCompiler(Tokenizer(byte_level()).to_json, VOCAB, (1,), seconds=10.0, clock=lambda: now[0])
    try:
        compiler.compile(GrammarSpec("regex", "first"))
        trial = compiler._opened[1]
        trial._seconds = 0.0
        for refuse in (compiler.compile, compiler.known):
            with pytest.raises(GrammarError, match="not compiled within 0 s"):
                refuse(spec)
        trial._seconds, now[0] = 10.0, 59.0
        with pytest.raises(GrammarError, match="not compiled within 0 s"):
            compiler.compile(spec)
        now[0] = 60.0
        assert compiler.known(spec) is None
        assert compiler.compile(spec) is compiler.known(spec)
        with pytest.raises(GrammarError, match="unclosed group"):
            compiler.compile(GrammarSpec("regex", "(ab"))
        now[0] = 1e9
        assert compiler.known(spec) is not None
        with pytest.raises(GrammarError, match="unclosed group"):
            compiler.known(GrammarSpec("regex", "(ab"))
    finally:
        compiler.close()


def test_a_process_that_ends_is_started_again(made: Any) -> None:
    compiler, _, _ = made
    compiler.compile(GrammarSpec("regex", "before"))
    trial = compiler._opened[1]
    trial._process.kill()
    trial._process.wait()
    compiler.compile(GrammarSpec("regex", "after"))
    trial.close()
    assert trial._process is None


def test_a_model_that_does_not_suit_is_refused() -> None:
    text = Tokenizer(byte_level()).to_json
    for compiler, reason in (
        (GrammarCompiler(text, VOCAB, ()), "it names no token that ends a text"),
        (GrammarCompiler(text, 300, (1,)), "this model's tokenizer: vocab size too small; 300 vs 320"),
        (GrammarCompiler(lambda: "{}", VOCAB, (1,)), "no structured output with this model's tokenizer: "),
    ):
        with pytest.raises(GrammarError, match=reason):
            compiler.compile(GrammarSpec("json_object"))
