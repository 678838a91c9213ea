"""A request as the scheduler sees it, and the scheduler's record of where it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
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
        prompt: token ids; a `range` will do where they are never looked at.
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


class Phase(Enum):
    """Where a request is on its way; a preempted one goes from LEAVING back to WAITING."""

    WAITING = "waiting"
    """It has no slot and no pages."""
    PREFILLING = "prefilling"
    """It has both. Known tokens are still to be planned, or more of its prompt is to come."""
    DECODING = "decoding"
    """Every known token is planned; each further one is planned after it was sampled."""
    LEAVING = "leaving"
    """It was preempted: it gets no more chunks, and gives slot and pages back when none is in flight."""
    ENDED = "ended"
    """It is finished or cancelled, and gives back what it holds when no chunk is in flight."""


WAITING, PREFILLING, DECODING, LEAVING, ENDED = Phase  # an attribute of an enum takes 0.2 us on Python 3.11


@dataclass(slots=True, eq=False)
class RequestState:
    """Where a request is and what it holds. Its methods are the only ones that change it.

    While it is admitted its first `to_feed` tokens are fed as a prompt: the prompt, and after a preemption what it had
    generated before.

    Args:
        number: names it; later requests have larger ones.
        request: what was asked for.
        due: when its first token is due, in seconds.
        tpot: seconds per output token that its decodes allow.
        long: whether its prompt is a long one.
        to_feed: tokens to feed before the next one is sampled.
        total: predicted seconds of all its prompt work.
        remaining: of these, what is not planned.
        generated: token ids of its output.
        chunks: lengths of the prompt chunks that were planned, in tokens.
        phase: where it is on its way.
        holding: its pages; None without any.
        owners: groups that hold it up to `scheduled`.
        slot: on the devices; -1 without one.
        scheduled: tokens that have entered the first pipeline stage.
        computed: tokens that have left the last stage.
        in_flight: chunks in between.
        prompt_chunks: that were planned since it was admitted.
        last_planned_tick: number of the tick in which it was admitted or got its last prompt chunk.
        cached_by_group: tokens of it that the prefix cache has on each group; None where that was not looked up.
        preemptions: how often it lost its pages.
        preempted_at: when it lost them last, in seconds.
        blocked_since: when its pages were first found taken since it waits, in seconds.
    """

    number: int
    request: SchedulerRequest
    due: float
    tpot: float
    long: bool
    to_feed: int
    total: float
    remaining: float
    generated: list[int] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    phase: Phase = WAITING
    holding: Holding | None = None
    owners: tuple[int, ...] = ()
    slot: int = -1
    scheduled: int = 0
    computed: int = 0
    in_flight: int = 0
    prompt_chunks: int = 0
    last_planned_tick: int = 0
    cached_by_group: tuple[int, ...] | None = None
    preemptions: int = 0
    preempted_at: float = math.inf
    blocked_since: float = math.inf

    @classmethod
    def new(cls, number: int, request: SchedulerRequest, config: SchedulerConfig) -> RequestState:
        """The record of a request that has just come; its work is not predicted yet."""
        tpot = max(request.slo.tpot_s or config.tpot_target_s, config.tpot_floor_s)
        state = cls(number, request, math.inf, tpot, False, 0, 0.0, 0.0)
        state.to_feed = state._feedable
        return state

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
    def wants_more(self) -> bool:
        """Whether it may have a token beyond the one that is sampled after those that are scheduled."""
        return self.scheduled + 1 < len(self.request.prompt) + self.request.max_tokens

    @property
    def running(self) -> bool:
        """Whether it is admitted and keeps its pages."""
        return self.phase is DECODING or self.phase is PREFILLING

    @property
    def queued(self) -> bool:
        """Whether it belongs in the prefill queue: waiting or admitted, with known tokens that are not planned."""
        return self.scheduled < self.to_feed and (self.phase is WAITING or self.phase is PREFILLING)

    @property
    def _feedable(self) -> int:
        """Known tokens that may be fed now; the last one of an incomplete prompt is kept, to sample after it."""
        return self.known if self.complete else max(0, self.known - 1)

    def ids(self, start: int, end: int) -> tuple[int, ...]:
        """The token ids at positions `[start, end)`: of the prompt, then of what was generated."""
        prompt = len(self.request.prompt)
        if end <= prompt:
            return tuple(self.request.prompt[start:end])
        generated = self.generated[max(0, start - prompt) : end - prompt]
        return (*self.request.prompt[start:prompt], *generated)

    def grow(self, ids: Sequence[int], complete: bool) -> None:
        """Take in more of an incomplete prompt."""
        request = self.request
        assert request.reserved is not None and isinstance(request.prompt, list)
        request.prompt.extend(ids)
        if complete:
            most = min(request.max_tokens, request.reserved - len(request.prompt))
            self.request = replace(request, max_tokens=most, reserved=None)
        self.to_feed = self._feedable
        self.cached_by_group = None

    def predict(self, remaining: float, total: float) -> None:
        """Note the predicted seconds of its prompt work, left and in all."""
        self.remaining, self.total = remaining, total

    def expect(self, due: float, long: bool) -> None:
        """Note when its first token is due, in seconds, and whether its prompt is a long one."""
        self.due, self.long = due, long

    def find_cached(self, tokens: tuple[int, ...]) -> None:
        """Note how many of its tokens the prefix cache has on each group."""
        self.cached_by_group = tokens

    def block(self, now: float) -> None:
        """Note that its pages are taken."""
        self.blocked_since = min(self.blocked_since, now)

    def admit(self, holding: Holding, slot: int) -> None:
        """Take slot and pages; cached tokens count as computed."""
        self.phase = PREFILLING
        self.holding, self.slot = holding, slot
        self.scheduled = self.computed = holding.cached
        self.owners = holding.owners(holding.cached)
        self.blocked_since = math.inf

    def plan_prompt_chunk(self, end: int) -> None:
        """A chunk of its prompt up to position `end` is in a plan."""
        assert self.holding is not None
        self.chunks.append(end - self.scheduled)
        self.prompt_chunks += 1
        self.in_flight += 1
        self.scheduled, self.owners = end, self.holding.owners(end)
        if end == self.to_feed and self.complete:
            self.phase = DECODING

    def plan_decode(self) -> None:
        """Its next token is in a plan."""
        holding = self.holding
        assert holding is not None
        self.in_flight += 1
        self.scheduled += 1
        if self.scheduled % holding.per_group == 0:
            self.owners = holding.owners(self.scheduled)

    def note_tick(self, tick: int, remaining: float) -> None:
        """It was admitted or got a prompt chunk in tick `tick`, after which `remaining` seconds of work are left."""
        self.last_planned_tick, self.remaining = tick, remaining

    def chunk_left(self, end: int, token: int | None) -> None:
        """The oldest chunk in flight, up to position `end`, has left the last stage; it may have sampled a token."""
        self.in_flight -= 1
        if self.phase is not ENDED:
            self.computed = end
            if token is not None:
                self.generated.append(token)

    def lose_chunks(self) -> None:
        """The chunks in flight are lost, and so is the KV of the others."""
        self.in_flight = 0

    def preempt(self) -> None:
        """It is to give its pages back. Its tokens are kept."""
        self.phase = LEAVING
        self.preemptions += 1

    def release(self) -> None:
        """Give slot and pages back; nothing is in flight."""
        self.holding, self.owners, self.slot = None, (), -1

    def requeue(self, now: float) -> None:
        """It waits again after a preemption, and all its known tokens are fed again."""
        self.phase = WAITING
        self.to_feed = self._feedable
        self.scheduled = self.computed = self.prompt_chunks = 0
        self.cached_by_group = None
        self.preempted_at = now

    def end(self) -> None:
        """It is finished or cancelled."""
        self.phase = ENDED
