"""What a generation is asked for and what it reports: frozen data, no behaviour, no JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medha_jax.plan import SamplingParams
from medha_jax.scheduler.request import NO_SLO, OnDeadline, Slo

FinishReason = Literal["stop", "length"]
FailReason = Literal["deadline", "not_finite"]


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt and how to continue it.

    `eos_ids` end the generation unless `sampling.ignore_eos`. `chunks` are the prefill chunk sizes in
    tokens, in order, the last one repeated until the prompt ends; None leaves them to the scheduler.
    `slo`, `deadline_s` (absolute, on the engine's clock), `on_deadline` and `cache_salt` are those of
    `scheduler.request.Request`.
    """

    prompt_ids: Sequence[int]
    sampling: SamplingParams
    eos_ids: tuple[int, ...] = ()
    chunks: tuple[int, ...] | None = None
    slo: Slo = NO_SLO
    deadline_s: float | None = None
    on_deadline: OnDeadline = "continue"
    cache_salt: str = ""


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural-log probability of a generated token; `top` has (id, logprob) of the likeliest, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Prefilled:
    """`done` of `total` prompt tokens are computed."""

    done: int
    total: int


@dataclass(frozen=True)
class Delta:
    """New tokens and the text that became certain with them.

    Text may lag behind its tokens (an unfinished UTF-8 character, a possible stop string), so it may be
    empty. `logprobs` has one entry per token, or none where the request did not ask for them.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class Completion:
    """A finished generation; `text` is the joined text of its deltas.

    `token_ids` holds every generated token, the one that ended the generation included. `matched` is the
    stop string, or the stop or end-of-sequence token id, that ended it; None where `finish_reason` is
    "length". `ttft_s` is seconds from the request to its first token; `tpot_s` is seconds per token after
    the first, `(E2EL - TTFT) / (tokens - 1)`, None for a single token. `chunks` are the computed prefill
    chunk sizes in tokens, those computed again included; `preemptions` says how often it lost its pages.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    matched: str | int | None
    prompt_tokens: int
    logprobs: tuple[TokenLogprobs, ...]
    ttft_s: float
    tpot_s: float | None
    chunks: tuple[int, ...]
    preemptions: int = 0


@dataclass(frozen=True)
class Finished:
    """The generation is over; no event follows."""

    completion: Completion


@dataclass(frozen=True)
class Failed:
    """The generation has ended before it was over; no event follows.

    "deadline": its deadline has passed and it asked to be dropped then. "not_finite": the model's logits are not
    numbers.
    """

    reason: FailReason
    message: str
