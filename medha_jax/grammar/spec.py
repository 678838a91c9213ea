"""What an output shall follow, as a request states it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

GrammarKind = Literal["json_schema", "json_object", "regex", "grammar"]
KINDS: tuple[GrammarKind, ...] = get_args(GrammarKind)
MOST_BYTES = {"json_schema": 65536, "json_object": 0, "regex": 4096, "grammar": 65536}  # of a text in UTF-8
LONGEST_REASON = 500  # characters


class GrammarError(ValueError):
    """A grammar that cannot be used, or an output that cannot go on by it; the message says why, in bounded length."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason if len(reason) <= LONGEST_REASON else reason[: LONGEST_REASON - 1] + "…")


class CostlyGrammarError(GrammarError):
    """A grammar that was not compiled in the time and memory that it may take; on a machine with less to do it may."""


@dataclass(frozen=True)
class GrammarSpec:
    """A grammar as its author wrote it.

    Args:
        kind: `json_schema`: a JSON schema, and the output is one JSON value that it holds for. `json_object`: any JSON
            object. `regex`: a regular expression in Rust's syntax, for the whole output. `grammar`: a context-free
            grammar in the Lark syntax of llguidance.
        text: the schema, expression or grammar; empty for `json_object`.

    Raises:
        GrammarError: there is no such kind, or the text is too long or no Unicode.
    """

    kind: GrammarKind
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise GrammarError(f"a structured output of kind {self.kind!r}; allowed are {', '.join(KINDS)}")
        try:
            size, most = len(self.text.encode("utf-8")), MOST_BYTES[self.kind]
        except UnicodeEncodeError:
            raise GrammarError(f"{self.kind} is not valid Unicode (lone surrogates); give UTF-8 text") from None
        if size > most:
            raise GrammarError(f"{self.kind} has {size} bytes; allowed are {most}")
