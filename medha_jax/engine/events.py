"""What a generation is asked for and what it reports: frozen data, no behaviour, no JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medha_jax.plan import SamplingParams
from medha_jax.scheduler.request import NO_SLO, OnDeadline, Slo

FinishReason = Literal["stop", "length"]
FailReason = Literal["deadline", "not_finite", "internal", "stopped"]


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt and how to continue it.

    `eos_ids` end the generation unless `sampling.ignore_eos`. `chunks` are the prefill chunk sizes in
    tokens, in order, the last one repeated until the prompt ends; None leaves them to the scheduler.
    `slo`, `deadline_s` (absolute, on the engine's clock), `on_deadline` and `cache_salt` are those of
    `scheduler.request.SchedulerRequest`.

    `prompt_bound` is None where `prompt_ids` are the whole prompt. Otherwise they are its first part, and
    `prompt_bound` is the most tokens that all parts may have together. Pages are reserved for these and the output.
    """

    prompt_ids: Sequence[int]
    sampling: SamplingParams
    eos_ids: tuple[int, ...] = ()
    chunks: tuple[int, ...] | None = None
    slo: Slo = NO_SLO
    deadline_s: float | None = None
    on_deadline: OnDeadline = "continue"
    cache_salt: str = ""
    prompt_bound: int | None = None


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural-log probability of a generated token; `top` has (id, logprob) of the likeliest, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Queued:
    """The request is queued: the first event of every request.

    `position` counts the waiting requests that its policy serves before it. `predicted_ttft_s` is the predicted time
    of all prompt work before it and its own, in seconds, as if nothing else came.
    """

    position: int
    predicted_ttft_s: float


@dataclass(frozen=True)
class Prefilled:
    """`done` of `total` prompt tokens are computed."""

    done: int
    total: int


@dataclass(frozen=True)
class NewTokens:
    """New tokens and the text that became certain with them.

    Text may lag behind its tokens (an unfinished UTF-8 character, a possible stop string), so it may be
    empty. `logprobs` has one entry per token, or none where the request did not ask for them.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class PhaseTimings:
    """How long the parts of a generation took, in seconds; `queue_s + prefill_s + decode_s` is `e2e_s`.

    `queue_s` is from the request to its first chunk, `prefill_s` from there to its first token, `decode_s` from there
    to its last one. `ttft_s` is from the request to its first token. `tpot_s` is the time per token after the first,
    `(E2EL - TTFT) / (tokens - 1)`, None for a single token.
    """

    queue_s: float
    prefill_s: float
    ttft_s: float
    decode_s: float
    e2e_s: float
    tpot_s: float | None


@dataclass(frozen=True)
class Course:
    """What became of a request on its way.

    `chunks` are the computed prefill chunk sizes in tokens, those computed again included; `preemptions` says how
    often it lost its pages; `cached_tokens` of its prompt were found in the prefix cache when it was first admitted.
    `deadline_met`: its first token came when it was due, and its last one before its deadline, if it stated one.
    """

    timings: PhaseTimings
    chunks: tuple[int, ...]
    preemptions: int = 0
    cached_tokens: int = 0
    deadline_met: bool = True


@dataclass(frozen=True, kw_only=True)
class Completion(Course):
    """A finished generation; `text` is the joined text of its deltas.

    `token_ids` holds every generated token, the one that ended the generation included. `matched` is the
    stop string, or the stop or end-of-sequence token id, that ended it; None where `finish_reason` is
    "length".
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
class Completed:
    """The generation is over; no event follows."""

    completion: Completion


@dataclass(frozen=True)
class Failed:
    """The generation has ended before it was over; no event follows.

    "deadline": its deadline has passed and it asked to be dropped then. "not_finite": the model's logits are not
    numbers. "internal": an error in the engine or the runtime. "stopped": the engine was stopped.
    """

    reason: FailReason
    message: str


EngineEvent = Queued | Prefilled | NewTokens | Completed | Failed
