"""The choices of an answer, as JSON: what a completion and a chat completion say of new tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.http.token_texts import Scored, TokenText, completion_logprobs
from medha_jax.server.replies import REASONS
from medha_jax.server.request_parser import ServedModel

_REASONS = {value: name for name, value in REASONS.items()}


@dataclass
class News:
    """What is new of one choice: text, token ids, tokens with log-probabilities, and how it ended, if it has."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    finished: pb.GenerationFinished | None = None


class ChoiceForm(Protocol):
    """Writes choices in the form of one API. It has state for each choice, so each answer has its own."""

    object: str  # of a whole answer
    chunk_object: str
    id_prefix: str

    def chunk(self, index: int, news: News) -> dict[str, Any] | None:
        """What is new of a choice, for a chunk; None if nothing of it can be told yet."""

    def whole(self, index: int, news: News) -> dict[str, Any]:
        """A choice of a whole answer."""


class CompletionForm:
    """Choices of `/v1/completions`. `top`: likeliest tokens of each token; None for no log-probabilities."""

    object = chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def __init__(self, top: int | None, text_of: TokenText) -> None:
        self._top, self._text_of = top, text_of
        self._offsets: dict[int, int] = {}  # of the next token of each choice, in characters

    def chunk(self, index: int, news: News) -> dict[str, Any] | None:
        """The choice."""
        return self.whole(index, news)

    def whole(self, index: int, news: News) -> dict[str, Any]:
        """The choice."""
        choice: dict[str, Any] = {"index": index, "text": news.text, "logprobs": None}
        if self._top is not None and news.scored:
            offset = self._offsets.get(index, 0)
            choice["logprobs"] = scores = completion_logprobs(news.scored, self._text_of, offset, self._top)
            self._offsets[index] = scores["text_offset"][-1] + len(scores["tokens"][-1])
        return choice | how_it_ended(news.finished)


def token_text(model: ServedModel) -> TokenText:
    """Gives the text of a token of a model, special tokens included."""
    return lambda token_id: model.tokenizer.decode([token_id], skip_special=False)


def how_it_ended(finished: pb.GenerationFinished | None) -> dict[str, Any]:
    """`finish_reason`, and in `stop_reason` the text or the token id that ended the output."""
    if finished is None:
        return {"finish_reason": None, "stop_reason": None}
    matched: str | int | None = None
    if (kind := finished.WhichOneof("matched")) is not None:
        matched = getattr(finished, kind)
    return {"finish_reason": _REASONS[finished.reason], "stop_reason": matched}
