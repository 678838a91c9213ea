"""The calls of llguidance that compile a grammar. Only `grammar_compiler` and `trial` import this module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from medha_jax.grammar.spec import GrammarError, GrammarSpec

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# JSON in whatever layout, but no model can fill its output with blanks. A schema cannot change these.
JSON_OPTIONS: JsonCompileOptions = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_pattern": r"[ \n\r\t]{0,32}",
    "lenient": False,
    "coerce_one_of": False,
}
# Each bounds the time of one mask, or memory; a lexer's state takes 1 to 2 kB.
LIMITS = LLParserLimits(verbose_errors=False, max_lexer_states=50_000)


@dataclass(frozen=True)
class TokenFacts:
    """What a grammar needs of a model.

    Args:
        tokenizer: `tokenizer.json` as text.
        vocab: ids of its logits.
        eos_ids: tokens that end a text; the tokenizer has all of them.
    """

    tokenizer: str
    vocab: int
    eos_ids: tuple[int, ...]

    def open(self) -> LLTokenizer:
        """A tokenizer of the library; takes about a second for 150,000 tokens.

        Raises:
            GrammarError: the library cannot read it, the model has fewer ids than it, or there is no end token.
        """
        if not self.eos_ids:
            raise GrammarError("there is no structured output with this model: it names no token that ends a text")
        try:
            return LLTokenizer(self.tokenizer, n_vocab=self.vocab, eos_token=list(self.eos_ids))
        except Exception as error:
            raise GrammarError(f"there is no structured output with this model's tokenizer: {_line(error)}") from None


def compiled(tokenizer: LLTokenizer, spec: GrammarSpec) -> LLMatcher:
    """A matcher that stands at the beginning of a grammar, with its first mask computed.

    It takes milliseconds for most grammars, and there are some that would take hours.

    Raises:
        GrammarError: the grammar cannot be compiled, or only the empty text follows it.
    """
    try:
        matcher = LLMatcher(tokenizer, _source(spec), log_level=0, limits=LIMITS)
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    except Exception as error:  # the library raises ValueError for most, and PanicException is none
        raise GrammarError(f"{spec.kind}: {_line(error)}") from None
    if matcher.is_error():
        raise GrammarError(f"{spec.kind}: {reason_of(matcher)}")
    if set(np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()) <= set(tokenizer.eos_tokens):
        raise GrammarError(f"{spec.kind}: only the empty text follows it; an output has one token at least")
    return matcher


def reason_of(matcher: LLMatcher) -> str:
    """Why a matcher is in error, on one line."""
    said = matcher.get_error()
    if said.startswith("NoExtension"):
        return "no text follows it"
    return _line(said.partition("<state>")[0].replace("<non-verbose/>", ""))


def _source(spec: GrammarSpec) -> str:
    match spec.kind:
        case "json_object":
            return LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=JSON_OPTIONS)
        case "json_schema":
            text = spec.text.strip()
            if text in ("true", "false"):  # a schema, but the library takes options for objects only
                text = "{}" if text == "true" else '{"allOf": [false]}'
            return LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS)
        case "regex":
            return LLMatcher.grammar_from_regex(spec.text)
        case _:
            return LLMatcher.grammar_from_lark(spec.text)


def _line(error: object) -> str:
    return " ".join(str(error).split())
