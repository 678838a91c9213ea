"""Requests and events of a generation: frozen data without behaviour or JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from medha_jax.grammar.matcher import Grammar
from medha_jax.plan import PromptScores, SamplingParams
from medha_jax.scheduler.request import NO_SLO, OnDeadline, Slo
from medha_jax.token_ids import kept

FinishReason = Literal["stop", "length"]
FailReason = Literal["deadline", "not_finite", "grammar", "internal", "stopped"]


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt and how to continue it.

    `eos_ids` end the generation unless `sampling.ignore_eos`. `chunks` are the prefill chunk sizes in tokens, the last
    one repeated until the prompt ends; None leaves them to the scheduler. `slo`, `deadline_s` (absolute, on the
    engine's clock), `on_deadline`, `tenant`, `cache_salt` and `priority` are as in
    `scheduler.request.SchedulerRequest`.

    `prompt_bound` is None if `prompt_ids` are the whole prompt. Otherwise they are its first part, and `prompt_bound`
    is the most tokens of all parts together.

    `n` outputs are wanted of the prompt, which is computed once. Output i is that of a request with `n` 1 and the seed
    `plan.output_seed(seed, i)`.

    Each output follows `grammar`, if there is one.

    `prompt_ids` are kept as `token_ids.IdArray`, 4 bytes a token, or as a range. An array that is given must not change
    afterwards.
    """

    prompt_ids: Sequence[int]
    sampling: SamplingParams
    eos_ids: tuple[int, ...] = ()
    chunks: tuple[int, ...] | None = None
    slo: Slo = NO_SLO
    deadline_s: float | None = None
    on_deadline: OnDeadline = "continue"
    tenant: str = ""
    cache_salt: str = ""
    prompt_bound: int | None = None
    n: int = 1
    priority: int = 0
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_ids", kept(self.prompt_ids))


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural-log probability of a generated token; `top` has (id, logprob) of the most likely ones, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Queued:
    """The request is queued: the first event of every output of a request.

    `position` counts the waiting requests before it. `predicted_ttft_s` is the predicted seconds of its own prompt
    work and all before it, if no other request comes. `seed` is stated by the request, or drawn for it; of a further
    output, it is derived from that.
    """

    position: int
    predicted_ttft_s: float
    seed: int


@dataclass(frozen=True)
class Prefilled:
    """`done` of `total` prompt tokens are computed; the rest is predicted to take `left_s` seconds by itself."""

    done: int
    total: int
    left_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class PromptScored:
    """Log-probabilities of the next tokens of a prompt, from its second token on; each comes once, in order.

    They come before the first token of a request, and with several outputs for the first one only.
    """

    scores: PromptScores


@dataclass(frozen=True)
class FirstToken:
    """When a request's first token came: seconds from the request to its first chunk, and from there to the token.

    `priority` is the request's class.
    """

    queue_s: float
    prefill_s: float
    priority: int = 0

    @property
    def ttft_s(self) -> float:
        """Seconds from the request to its first token."""
        return self.queue_s + self.prefill_s


@dataclass(frozen=True)
class NewTokens:
    """New tokens and the text that became certain with them.

    Text may lag behind its tokens (an unfinished UTF-8 character, a possible stop string), so it may be empty.
    `logprobs` has one entry per token, or none if the request did not ask for them. `first` comes with the first token
    of a request.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    first: FirstToken | None = None


@dataclass(frozen=True)
class PhaseTimings:
    """Durations of the parts of a generation, in seconds; `queue_s + prefill_s + decode_s` is `e2e_s`.

    `queue_s` lasts from the request to its first chunk, `prefill_s` from there to the first token, and `decode_s` from
    there to the last token. `ttft_s` lasts from the request to the first token. `tpot_s` is the time per token after
    the first, `(E2EL - TTFT) / (tokens - 1)`; None for a single token.
    """

    queue_s: float
    prefill_s: float
    ttft_s: float
    decode_s: float
    e2e_s: float
    tpot_s: float | None


@dataclass(frozen=True)
class Course:
    """How a request was served.

    `chunks` are the computed prefill chunk sizes in tokens, recomputed ones included. `cached_tokens` of its prompt
    were in the prefix cache at its first admission. `deadline_met` says that its first token came in time, and its
    last one before its deadline, if it has one.
    """

    timings: PhaseTimings
    chunks: tuple[int, ...]
    preemptions: int = 0
    cached_tokens: int = 0
    deadline_met: bool = True


@dataclass(frozen=True, kw_only=True)
class Completion(Course):
    """A finished generation; `text` is the joined text of its deltas.

    `token_ids` includes the token that ended the generation. `matched` is the stop string, or the stop or
    end-of-sequence token id, that ended it; None if `finish_reason` is "length". `logprobs` are only kept for who
    runs requests offline; a server gives them in the deltas.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    matched: str | int | None
    prompt_tokens: int
    logprobs: tuple[TokenLogprobs, ...]

    @property
    def ttft_s(self) -> float:
        """Seconds from the request to its first token."""
        return self.timings.ttft_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None for a single token."""
        return self.timings.tpot_s


@dataclass(frozen=True)
class RequestTotals:
    """A finished request with all its outputs. Its prompt counts once, and so do its `cached_tokens`.

    `finish_reason` is "stop" if every output ended so. `deadline_met` is as in `Course`, for every output.
    """

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    finish_reason: FinishReason
    deadline_met: bool


@dataclass(frozen=True)
class Completed:
    """The generation is over; no event follows.

    `request` comes with the last output of a request; None while others go on.
    """

    completion: Completion
    request: RequestTotals | None


@dataclass(frozen=True)
class Failed:
    """The generation ended early; no event follows.

    "deadline": its deadline has passed and it asked to be dropped. "not_finite": the model's values are not finite.
    "grammar": its structured output cannot go on.
    "internal": an error in the engine or the runtime. "stopped": the engine was stopped.
    """

    reason: FailReason
    message: str


EngineEvent = Queued | Prefilled | PromptScored | NewTokens | Completed | Failed
