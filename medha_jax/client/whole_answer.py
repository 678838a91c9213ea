"""A whole answer, put together from its events."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from medha_jax.client.answers import (
    Accepted,
    Delta,
    Event,
    Finished,
    PromptLogprobs,
    PromptProgress,
    Timings,
    TokenLogprob,
    Usage,
)
from medha_jax.client.errors import ServerError


@dataclass(frozen=True)
class AnswerOutput:
    """One output of an answer.

    Args:
        token_ids: with the one that ended the output, if one did.
        text: of all deltas; with `echo` it begins with the prompt's.
        logprobs: one for each token, if they were asked for.
        finish_reason: why it ended.
        matched: the stop text or token id that ended it; None if the reason is "length".
        usage: its tokens.
        timings: of its request, and of its tokens.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: Literal["stop", "length"]
    matched: str | int | None
    usage: Usage
    timings: Timings

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.usage.prompt_tokens

    @property
    def ttft_s(self) -> float:
        """Seconds from the request's arrival at the server to its first token."""
        return self.timings.ttft_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None for a single token."""
        decodes = len(self.token_ids) - 1
        return self.timings.decode_s / decodes if decodes > 0 else None

    @property
    def chunks(self) -> tuple[int, ...]:
        """Sizes of the computed prefill chunks, in tokens."""
        return self.timings.chunk_tokens


@dataclass(frozen=True)
class Answer:
    """All that a server gave for a prompt.

    Args:
        request_id: stated, or the server's own.
        seed: as in `Accepted`.
        outputs: `n` of them, in order.
        prompt_logprobs: of all tokens of the prompt but the first, if they were asked for.
    """

    request_id: str
    seed: int | None
    outputs: tuple[AnswerOutput, ...]
    prompt_logprobs: tuple[TokenLogprob, ...]

    @property
    def text(self) -> str:
        """Text of the first output."""
        return self.outputs[0].text


class AnswerBuilder:
    """Puts an answer together. Owns the events that came so far."""

    def __init__(self) -> None:
        self._accepted = Accepted("", 0, None)
        self._deltas = defaultdict[int, list[Delta]](list)
        self._prompt: list[TokenLogprob] = []
        self._finished: dict[int, Finished] = {}

    def add(self, event: Event) -> None:
        """Take an event."""
        match event:
            case Accepted():
                self._accepted = event
            case PromptLogprobs():
                self._prompt += event.tokens
            case Delta():
                self._deltas[event.index].append(event)
            case Finished():
                self._finished[event.index] = event
            case PromptProgress():
                pass

    def answer(self) -> Answer:
        """The answer; call it when the stream has ended.

        Raises:
            ServerError: the stream ended before all of its outputs.
        """
        ended = self._finished
        if not ended or self._deltas.keys() - ended.keys():
            raise ServerError("DATA_LOSS", "the server ended the stream without a last event")
        outputs = tuple(self._output(self._deltas[index], ended[index]) for index in sorted(ended))
        return Answer(self._accepted.request_id, self._accepted.seed, outputs, tuple(self._prompt))

    def _output(self, deltas: list[Delta], finished: Finished) -> AnswerOutput:
        return AnswerOutput(
            token_ids=tuple(token for delta in deltas for token in delta.token_ids),
            text="".join(delta.text for delta in deltas),
            logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
            finish_reason=finished.reason,
            matched=finished.matched,
            usage=finished.usage,
            timings=finished.timings,
        )
