"""Log-probabilities of tokens in the forms of OpenAI's two APIs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from medha_jax.protos import inference_pb2 as pb

TokenText = Callable[[int], str]  # the text of one id, special tokens included
_LEAST = -9999.0  # stands for minus infinity, which JSON has no word for


@dataclass(frozen=True)
class Scored:
    """A token with its log-probability, None if it has none, and the likeliest tokens, best first."""

    token_id: int
    logprob: float | None
    top: Sequence[tuple[int, float]] = ()


def scored_output(entries: Iterable[pb.TokenLogprob]) -> list[Scored]:
    """The tokens of a delta."""
    return [Scored(one.token_id, one.logprob, [(top.token_id, top.logprob) for top in one.top]) for one in entries]


def scored_prompt(message: pb.PromptLogprobs) -> list[Scored]:
    """The tokens of a part of a prompt."""
    ids, values, count = message.top_token_ids, message.top_logprobs, message.top
    tops = [list(zip(ids[k : k + count], values[k : k + count], strict=True)) for k in range(0, len(ids), count or 1)]
    return [
        Scored(token_id, logprob, tops[k] if count else ())
        for k, (token_id, logprob) in enumerate(zip(message.token_ids, message.logprobs, strict=True))
    ]


def completion_logprobs(tokens: Sequence[Scored], text_of: TokenText, offset: int, top: int) -> dict[str, Any]:
    """`logprobs` of a completion's choice, for tokens whose text begins at character `offset` of its text.

    Each token has the `top` likeliest ones and itself.
    """
    texts, offsets = [text_of(one.token_id) for one in tokens], []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    likeliest: list[dict[str, float] | None] = []
    for one in tokens:
        named: dict[str, float] = {}  # ids may share a text: the likeliest counts
        for token_id, logprob in [*one.top[:top], *([] if one.logprob is None else [(one.token_id, one.logprob)])]:
            named.setdefault(text_of(token_id), _finite(logprob))
        likeliest.append(None if one.logprob is None else named)
    return {
        "text_offset": offsets,
        "token_logprobs": [None if one.logprob is None else _finite(one.logprob) for one in tokens],
        "tokens": texts,
        "top_logprobs": likeliest,
    }


def chat_logprobs(tokens: Sequence[Scored], text_of: TokenText, top: int) -> dict[str, Any]:
    """`logprobs` of a chat's choice."""
    return {
        "content": [
            _chat_token(text_of, one.token_id, one.logprob or 0.0)
            | {"top_logprobs": [_chat_token(text_of, token_id, logprob) for token_id, logprob in one.top[:top]]}
            for one in tokens
        ],
        "refusal": None,
    }


def _chat_token(text_of: TokenText, token_id: int, logprob: float) -> dict[str, Any]:
    text = text_of(token_id)
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode("utf-8", "replace"))}


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
