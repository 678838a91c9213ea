"""A request as the scheduler sees it, and the scheduler's record of its progress."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal

from medha_jax.config import PRIORITIES, SchedulerConfig
from medha_jax.kv.holding import Holding
from medha_jax.kv.prefix import DigestChain
from medha_jax.plan import InvalidRequestError
from medha_jax.token_ids import GrowingIds, joined, kept, no_ids

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
    """A request for the scheduler.

    Args:
        prompt: token ids, kept as `token_ids.IdArray` or as a range.
        max_tokens: most output tokens.
        arrival_s: when it came, in seconds of the scheduler's clock.
        deadline_s: when the caller stops waiting for the whole answer, on the same clock.
        on_deadline: whether to drop it once its first token is late or `deadline_s` has passed.
        tenant: whose request it is; only requests of the same tenant and `cache_salt` share cached pages.
        cache_salt: the tenant's own word.
        chunks: fixed prefill chunk sizes in tokens, the last one repeated; None for adaptive ones.
        counts_tokens: whether penalties count its tokens; a group that joins late must then be told the counts.
        bound: None if the prompt is complete. Otherwise `prompt` is `token_ids.GrowingIds`, prompt and output will have
            at most `bound` tokens together, and `max_tokens` is what the caller wishes.
        prompt_bound: tokens that an incomplete prompt may have; 0 if it is complete.
        scored: None, or how many of the likeliest tokens are wanted beside the log-probability of each prompt token.
            All of such a prompt is computed; nothing of it comes from the prefix cache.
        reads_tokens: whether its next token can only be planned once the host has read the last one.
        priority: its class, one of `config.PRIORITIES`; a lower one goes first.

    Raises:
        InvalidRequestError: there is no such class.
    """

    prompt: Sequence[int]
    max_tokens: int
    arrival_s: float
    slo: Slo = NO_SLO
    deadline_s: float | None = None
    on_deadline: OnDeadline = "continue"
    tenant: str = ""
    cache_salt: str = ""
    chunks: tuple[int, ...] | None = None
    counts_tokens: bool = False
    bound: int | None = None
    prompt_bound: int = 0
    scored: int | None = None
    reads_tokens: bool = False
    priority: int = 0

    def __post_init__(self) -> None:
        if self.priority not in PRIORITIES:
            raise InvalidRequestError(
                f"priority is {self.priority}; allowed are {PRIORITIES[0]}, which goes first, to {PRIORITIES[-1]}"
            )
        grows = self.bound is not None and not isinstance(self.prompt, GrowingIds)
        object.__setattr__(self, "prompt", GrowingIds(self.prompt) if grows else kept(self.prompt))

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt; the most that it may have while it is incomplete."""
        return max(len(self.prompt), self.prompt_bound)

    @property
    def most(self) -> int:
        """Most tokens of prompt and output together."""
        return self.bound or len(self.prompt) + self.max_tokens


class Phase(Enum):
    """The phases of a request; a preempted one goes from LEAVING back to WAITING."""

    WAITING = "waiting"
    """It has no slot and no pages."""
    PREFILLING = "prefilling"
    """It has a slot and pages. Known tokens are not planned yet, or more of its prompt will come."""
    DECODING = "decoding"
    """Every known token is planned; each further token is planned after it was sampled."""
    LEAVING = "leaving"
    """It was preempted. It gets no more chunks, and gives slot and pages back when none is in flight."""
    ENDED = "ended"
    """It is finished or cancelled. It gives slot and pages back when no chunk is in flight."""


WAITING, PREFILLING, DECODING, LEAVING, ENDED = Phase  # reading an enum's attribute takes 0.2 us on Python 3.11


@dataclass(slots=True, eq=False)
class RequestState:
    """The progress of a request and what it holds. Only its own methods change it.

    An admitted request feeds its first `to_feed` tokens as a prompt. After a preemption these include what it had
    generated before.

    Args:
        number: identifies it; later requests have larger ones.
        due: when its first token is due, in seconds.
        tpot: target seconds per output token.
        to_feed: tokens to feed before the next one is sampled.
        total: predicted seconds of all its prompt work.
        remaining: predicted seconds of the prompt work that is not planned, and of its chunks in the slice lane.
        in_lane: of its chunks in the slice lane alone.
        chunks: lengths of the planned prompt chunks, in tokens.
        owners: groups that hold it up to `scheduled`.
        slot: on the devices; -1 without one.
        scheduled: tokens that have entered the first pipeline stage.
        computed: tokens that have left the last stage.
        in_flight: chunks that have entered the first stage and not left the last.
        prompt_chunks: prompt chunks planned since it was admitted.
        last_planned_tick: the tick in which it was admitted or got its last prompt chunk.
        cached_by_group: its tokens that each group has in its prefix cache or gets back from host memory; None if not
            looked up.
        chain: digests of its pages for the prefix cache; None if never looked up.
        preempted_at: when it last lost its pages, in seconds.
        blocked_since: when its pages were first not free during the current wait, in seconds.
        waits_for_rest: whether it lost its pages while its prompt was incomplete; it waits until that is complete.
        spoiled: whether a chunk of it failed or was not finite; what it computed is then offered to nobody.
        lead: number of the output of the same request that computes their prompt; None if it is that one.
        waits_for_lead: whether it waits until the prompt is computed, and then finds its pages in the prefix cache.
    """

    number: int
    request: SchedulerRequest
    due: float
    tpot: float
    long: bool
    to_feed: int
    total: float
    remaining: float
    in_lane: float = 0.0
    generated: array[int] = field(default_factory=no_ids)
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
    chain: DigestChain | None = None
    preemptions: int = 0
    preempted_at: float = math.inf
    blocked_since: float = math.inf
    waits_for_rest: bool = False
    spoiled: bool = False
    lead: int | None = None
    waits_for_lead: bool = False

    @classmethod
    def new(
        cls, number: int, request: SchedulerRequest, config: SchedulerConfig, lead: int | None = None
    ) -> RequestState:
        """The record of a new request, or of one more output of request `lead`; its work is not predicted yet."""
        tpot = max(request.slo.tpot_s or config.tpot_target_s, config.tpot_floor_s)
        state = cls(number, request, math.inf, tpot, False, 0, 0.0, 0.0)
        state.to_feed = state._feedable
        state.lead, state.waits_for_lead = lead, lead is not None
        return state

    @property
    def family(self) -> int:
        """The number that all outputs of its request have in common."""
        return self.number if self.lead is None else self.lead

    @property
    def known(self) -> int:
        """Known tokens: of the prompt, and generated."""
        return len(self.request.prompt) + len(self.generated)

    @property
    def scores(self) -> int | None:
        """As `SchedulerRequest.scored`; None for further outputs of a request, as the first one scores their prompt."""
        return self.request.scored if self.lead is None else None

    @property
    def claimed(self) -> int:
        """Tokens that it counts for while it waits: of the prompt, also those still to come, and generated ones.

        The prompt of several outputs counts once, for the one that computes it.
        """
        return (self.request.prompt_tokens if self.lead is None else 0) + len(self.generated)

    @property
    def complete(self) -> bool:
        """Whether its whole prompt has come."""
        return self.request.bound is None

    @property
    def wants_more(self) -> bool:
        """Whether its token limit allows another token after the one that the scheduled tokens sample."""
        return self.scheduled + 1 < len(self.request.prompt) + self.request.max_tokens

    @property
    def running(self) -> bool:
        """Whether it is admitted and keeps its pages."""
        return self.phase is DECODING or self.phase is PREFILLING

    @property
    def queued(self) -> bool:
        """Whether it belongs in the prefill queue: waiting or admitted, with unplanned known tokens."""
        waits = self.phase is WAITING and not (self.waits_for_rest or self.waits_for_lead)
        return self.scheduled < self.to_feed and (waits or self.phase is PREFILLING)

    @property
    def needs_page(self) -> bool:
        """Whether its next token has no page yet; it must be admitted."""
        assert self.holding is not None
        return self.scheduled >= self.holding.taken

    @property
    def idle(self) -> bool:
        """Whether it has its pages and nothing to compute, because its client has not sent more."""
        return self.phase is PREFILLING and self.scheduled == self.to_feed and not self.in_flight

    @property
    def _feedable(self) -> int:
        """Known tokens that may be fed now. An incomplete prompt keeps its last one back, to sample after it."""
        return self.known if self.complete else max(0, self.known - 1)

    def ids(self, start: int, end: int) -> Sequence[int]:
        """The token ids at positions `[start, end)` of prompt and output; a view if all are of the prompt."""
        prompt = self.request.prompt
        border = len(prompt)
        if end <= border:
            return prompt[start:end]
        return joined(prompt[start:], self.generated[max(0, start - border) : end - border])

    def grow(self, ids: Sequence[int], complete: bool) -> None:
        """Extend an incomplete prompt."""
        request = self.request
        assert request.bound is not None and isinstance(request.prompt, GrowingIds)
        request.prompt.extend(ids)
        if complete:
            prompt, most = request.prompt.whole(), min(request.max_tokens, request.bound - len(request.prompt))
            self.request = replace(request, prompt=prompt, max_tokens=most, bound=None, prompt_bound=0)
            self.waits_for_rest = False
        self.to_feed = self._feedable
        self.cached_by_group = None

    def follow(self, chain: DigestChain | None) -> None:
        """Note that it waits for its lead no longer; `chain` has the digests of their prompt, as far as known."""
        self.waits_for_lead, self.chain = False, chain

    def predict(self, unplanned: float, total: float) -> None:
        """Set the predicted seconds of its prompt work: what is not planned, and all of it."""
        self.remaining, self.total = unplanned + self.in_lane, total

    def expect(self, due: float, long: bool) -> None:
        """Set when its first token is due, in seconds, and whether its prompt is long."""
        self.due, self.long = due, long

    def find_cached(self, tokens: tuple[int, ...] | None, chain: DigestChain) -> None:
        """Set the number of its tokens that each group has cached, None if not known yet, and its digests so far."""
        self.cached_by_group, self.chain = tokens, chain

    def block(self, now: float) -> None:
        """Note that its pages are not free."""
        self.blocked_since = min(self.blocked_since, now)

    def admit(self, holding: Holding, slot: int) -> None:
        """Take slot and pages; cached tokens count as computed."""
        self.phase = PREFILLING
        self.holding, self.slot = holding, slot
        self.scheduled = self.computed = holding.cached
        self.owners = holding.owners(holding.cached)
        self.blocked_since = math.inf

    def joined(self) -> None:
        """Note that its holding has another group."""
        assert self.holding is not None
        self.owners = self.holding.owners(self.scheduled)

    def plan_prompt_chunk(self, end: int) -> None:
        """Note that a chunk of its prompt up to position `end` is in a plan."""
        assert self.holding is not None
        self.chunks.append(end - self.scheduled)
        self.prompt_chunks += 1
        self.in_flight += 1
        self.scheduled, self.owners = end, self.holding.owners(end)
        if end == self.to_feed and self.complete:
            self.phase = DECODING

    def plan_decode(self) -> None:
        """Note that its next token is in a plan."""
        holding = self.holding
        assert holding is not None
        self.in_flight += 1
        self.scheduled += 1
        if self.scheduled % holding.per_group == 0:
            self.owners = holding.owners(self.scheduled)

    def note_tick(self, tick: int, unplanned: float, in_lane: float = 0.0) -> None:
        """Note its admission, a prompt chunk or a slice in plan `tick`, and the seconds of work that are left after it.

        `unplanned` are of its prompt that is not planned, `in_lane` of its chunks in the slice lane.
        """
        self.last_planned_tick, self.in_lane, self.remaining = tick, in_lane, unplanned + in_lane

    def chunk_left(self, end: int, token: int | None, good: bool = True) -> None:
        """Note that the oldest chunk in flight, up to `end`, has left the last stage and may have sampled a token."""
        self.in_flight -= 1
        self.spoiled |= not good
        if self.phase is not ENDED:
            self.computed = end
            if token is not None:
                self.generated.append(token)

    def drop_chunks(self, count: int) -> None:
        """Count `count` chunks as no longer in flight: they will not be finished. It ends or loses its pages."""
        self.in_flight -= count

    def lose_chunks(self) -> None:
        """Count no chunk as in flight: the devices have lost them."""
        self.in_flight = 0

    def preempt(self, counted: bool = True) -> None:
        """Begin to give its pages back; its tokens are kept. `counted` unless it had nothing to compute."""
        self.phase = LEAVING
        self.preemptions += counted

    def release(self) -> None:
        """Give slot and pages back; nothing may be in flight."""
        self.holding, self.owners, self.slot = None, (), -1

    def requeue(self, now: float) -> None:
        """Wait again after a preemption; all known tokens are fed again."""
        self.phase = WAITING
        self.waits_for_rest = not self.complete
        self.to_feed = self._feedable
        self.scheduled = self.computed = self.prompt_chunks = 0
        self.in_lane = 0.0
        self.cached_by_group = None
        self.preempted_at = now

    def end(self) -> None:
        """Mark it as finished or cancelled."""
        self.phase = ENDED


def standing(state: RequestState) -> tuple[int, float, int]:
    """A key that orders requests by class, and from the oldest to the youngest."""
    return state.request.priority, *age(state)


def age(state: RequestState) -> tuple[float, int]:
    """A key that orders requests from the oldest to the youngest."""
    return state.request.arrival_s, state.number
