"""What travels between scheduler, engine and runtime: frozen data, no behaviour, no JAX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

MAX_STOP_TOKENS = 16
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LENGTH = 256
MAX_LOGPROBS = 20
MAX_SEED = 2**63 - 1


class InvalidRequestError(ValueError):
    """A request states a value that is not allowed; the message says what is."""


def _within(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Refuse a value that is not a finite number in `[low, high]` (or `(low, high]`)."""
    inside = (low < value if open_low else low <= value) and value <= high
    if not (math.isfinite(value) and inside):
        left = "(" if open_low else "["
        right = "inf)" if high == math.inf else f"{high:g}]"
        raise InvalidRequestError(f"{name} is {value}; allowed is {left}{low:g}, {right}")


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. Defaults sample from the unchanged distribution until the context is full.

    `temperature` 0 is greedy; `top_k` 0 or -1 is off; `logprobs` None is off, 0 gives the chosen token's
    alone; `seed` None lets the engine draw one. Presence and frequency penalties look at generated tokens
    (OpenAI's definition), the repetition penalty at prompt and generated ones (CTRL, arXiv 1909.05858).

    Raises:
        InvalidRequestError: a value is out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0, 100)
        _within("top_k", self.top_k, -1, math.inf)
        _within("top_p", self.top_p, 0, 1, open_low=True)
        _within("min_p", self.min_p, 0, 1)
        _within("repetition_penalty", self.repetition_penalty, 0, 2, open_low=True)
        _within("presence_penalty", self.presence_penalty, -2, 2)
        _within("frequency_penalty", self.frequency_penalty, -2, 2)
        _within("min_tokens", self.min_tokens, 0, math.inf)
        if self.seed is not None:
            _within("seed", self.seed, 0, MAX_SEED)
        if self.max_tokens is not None:
            _within("max_tokens", self.max_tokens, 1, math.inf)
            if self.min_tokens > self.max_tokens:
                raise InvalidRequestError(
                    f"min_tokens is {self.min_tokens}; allowed is [0, {self.max_tokens}] (max_tokens)"
                )
        if self.logprobs is not None:
            _within("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            stated = len(self.stop_token_ids)
            raise InvalidRequestError(f"{stated} stop token ids; allowed are {MAX_STOP_TOKENS}")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(f"{len(self.stop)} stop strings; allowed are {MAX_STOP_STRINGS}")
        if min(self.stop_token_ids, default=0) < 0:
            raise InvalidRequestError(f"stop token id {min(self.stop_token_ids)}; allowed are 0 and more")
        for text in self.stop:
            if not 1 <= len(text) <= MAX_STOP_STRING_LENGTH:
                raise InvalidRequestError(
                    f"a stop string has {len(text)} characters; allowed are 1 to {MAX_STOP_STRING_LENGTH}"
                )

    @classmethod
    def from_file(cls, path: Path, stated: Mapping[str, float | int]) -> SamplingParams:
        """The defaults of a model, from fields that a file of it states.

        Raises:
            InvalidRequestError: a value is out of its range; the message names the file.
        """
        try:
            return cls(**stated)  # type: ignore[arg-type]
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{path}: {error}") from None


class Chunk(NamedTuple):
    """Consecutive tokens of one request computed together; a decode step is a chunk of one.

    A tuple, because every tick makes one a request: a frozen dataclass takes three times as long to make.

    Args:
        slot: the request's row in the device tables.
        start: position of the first token.
        length: tokens.
        tokens: their ids, or None for a decode: the device feeds the token that it sampled last.
        last: whether the token sampled after this chunk is the request's next one.
        first_page: index of the first page in `pages` among the request's pages on the owner group.
        pages: pages of the owner group that the request holds from this chunk on.
        groups: the KV groups that hold the request so far, in order of allocation; the last one owns this chunk,
            which does not cross a border between groups.
    """

    slot: int
    start: int
    length: int
    tokens: tuple[int, ...] | None
    last: bool
    first_page: int = 0
    pages: tuple[int, ...] = ()
    groups: tuple[int, ...] = (0,)

    @property
    def end(self) -> int:
        """Context length after this chunk, in tokens."""
        return self.start + self.length

    @property
    def shared(self) -> bool:
        """Whether the chunk's rows are present on every group, because its KV is spread over several."""
        return len(self.groups) > 1


@dataclass(frozen=True)
class StepPlan:
    """The chunks of one microbatch, of different requests: decodes and prefill chunks in any mix."""

    chunks: tuple[Chunk, ...]
