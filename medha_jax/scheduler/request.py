"""A request as the scheduler sees it, and the scheduler's record of where it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from medha_jax.config import SchedulerConfig
from medha_jax.kv.groups import Holding
from medha_jax.plan import InvalidRequestError

OnDeadline = Literal["continue", "drop"]


@dataclass(frozen=True)
class Slo:
    """Service level objective: seconds to the first token, and seconds per token after it; None if not stated."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InvalidRequestError(f"{name} is {value}; allowed are seconds above 0")


NO_SLO = Slo()


@dataclass(frozen=True, eq=False)
class SchedulerRequest:
    """What the scheduler needs to know of a request.

    Args:
        prompt: token ids; a `range` will do where nobody looks at them.
        max_tokens: output tokens that it may have; their pages are reserved with the prompt's.
        arrival_s: when it came, in seconds of the scheduler's clock.
        slo: what was promised.
        deadline_s: when the caller stops waiting for the whole answer, on the same clock.
        on_deadline: whether it is still served when its first token was due and is not there, or its caller is gone.
        cache_salt: only requests of one salt share cached pages.
        chunks: stated prefill chunk sizes in tokens, the last one repeated; None for adaptive ones.
        counts_tokens: whether penalties count its tokens, so that a group that joins late must be told the counts.
        reserved: None where the prompt is complete. Otherwise `prompt` is a list that grows, its pages are those of so
            many tokens, and `max_tokens` is what the caller wishes.
    """

    prompt: Sequence[int]
    max_tokens: int
    arrival_s: float
    slo: Slo = NO_SLO
    deadline_s: float | None = None
    on_deadline: OnDeadline = "continue"
    cache_salt: str = ""
    chunks: tuple[int, ...] | None = None
    counts_tokens: bool = False
    reserved: int | None = None


@dataclass(slots=True, eq=False)
class RequestState:
    """Where a request is and what it holds; only the scheduler changes it.

    It waits while `holding` is None. Then its first `fill` tokens are fed as a prompt: the prompt, and after a
    preemption what it had generated before. `scheduled` tokens have entered the first pipeline stage, `computed` ones
    have left the last, `flying` chunks are in between. A request that is `leaving` gets no more chunks, and gives its
    pages and slot back when none is in flight. `queued` ones are in the backlog.

    Args:
        number: names it; later requests have larger ones.
        request: what was asked for.
        due: when its first token is due, in seconds.
        tpot: seconds per output token that its decodes allow.
        long: whether its prompt is a long one.
        fill: tokens to feed before the next one is sampled.
        total: predicted seconds of all its prompt work.
        remaining: of these, what is not scheduled.
    """

    number: int
    request: SchedulerRequest
    due: float
    tpot: float
    long: bool
    fill: int
    total: float
    remaining: float
    generated: list[int] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    holding: Holding | None = None
    owners: tuple[int, ...] = ()
    slot: int = -1
    scheduled: int = 0
    computed: int = 0
    flying: int = 0
    chunk: int = 0
    served: int = 0
    found: tuple[int, ...] | None = None
    preemptions: int = 0
    preempted_at: float = math.inf
    blocked_since: float = math.inf
    queued: bool = False
    leaving: bool = False
    ended: bool = False

    @property
    def tokens(self) -> int:
        """Tokens whose pages it needs: prompt and output."""
        return self.request.reserved or len(self.request.prompt) + self.request.max_tokens

    @property
    def known(self) -> int:
        """Tokens of it that are known: of the prompt, and generated."""
        return len(self.request.prompt) + len(self.generated)

    @property
    def complete(self) -> bool:
        """Whether its whole prompt is there."""
        return self.request.reserved is None

    @property
    def fillable(self) -> int:
        """Known tokens that may be fed now; the last one of an incomplete prompt is kept, to sample after it."""
        return self.known if self.complete else max(0, self.known - 1)

    @property
    def wants_more(self) -> bool:
        """Whether it may have a token beyond the one that is sampled after those that are scheduled."""
        return self.scheduled + 1 < len(self.request.prompt) + self.request.max_tokens

    @property
    def prefilling(self) -> bool:
        """Whether tokens that are known already are still to be fed."""
        return self.scheduled < self.fill

    def grow(self, ids: Sequence[int], complete: bool) -> None:
        """Take in more of an incomplete prompt."""
        request = self.request
        assert request.reserved is not None and isinstance(request.prompt, list)
        request.prompt.extend(ids)
        if complete:
            most = min(request.max_tokens, request.reserved - len(request.prompt))
            self.request = replace(request, max_tokens=most, reserved=None)
        self.fill = self.fillable
        self.found = None

    def ids(self, start: int, end: int) -> tuple[int, ...]:
        """The token ids at positions `[start, end)`: of the prompt, then of what was generated."""
        prompt = len(self.request.prompt)
        if end <= prompt:
            return tuple(self.request.prompt[start:end])
        generated = self.generated[max(0, start - prompt) : end - prompt]
        return (*self.request.prompt[start:prompt], *generated)


def new_state(number: int, request: SchedulerRequest, config: SchedulerConfig) -> RequestState:
    """The record of a request that has just come; its work is not predicted yet."""
    state = RequestState(
        number=number,
        request=request,
        due=math.inf,
        tpot=max(request.slo.tpot_s or config.tpot_target_s, config.tpot_floor_s),
        long=False,
        fill=0,
        total=0.0,
        remaining=0.0,
    )
    state.fill = state.fillable
    return state
