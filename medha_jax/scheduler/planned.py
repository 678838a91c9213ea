"""One plan of the scheduler: a tick or a slice, finished or under way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from medha_jax.plan import Chunk, PageCopy, StepPlan
from medha_jax.scheduler.request import RequestState
from medha_jax.scheduler.slice_lane import SliceStep
from medha_jax.scheduler.tick_budget import TickBudget
from medha_jax.scheduler.tick_targets import TickTarget
from medha_jax.scheduler.time_model import TickWork


@dataclass(frozen=True)
class Planned:
    """A tick or a slice, with the state changes that it brings.

    Args:
        plan: chunks that enter the first stage with it; empty if none do.
        states: the request of each chunk.
        admitted: requests that got their slot with this plan; the executor must hear of them first.
        joining: requests that get their second group with this plan; the executor needs their token counts.
        expired: requests dropped because their deadline has passed.
        work: of the slowest stage in the tick in which the plan enters.
        seconds: predicted for that tick.
        sizes: padded rows of that tick: own decodes, own prompt tokens, shared decodes, shared prompt tokens.
        slacks: relative slack of each chunk's request before the chunk; NaN for decodes.
        preempted: requests that lose their pages, now or when their chunks in flight have left.
        lost_tokens: tokens whose KV they lose.
        copies: of pages between devices and host, in order; they come before the tick or slice.
        step: the slice; None for a tick.
    """

    plan: StepPlan = field(default_factory=lambda: StepPlan(()))
    states: tuple[RequestState, ...] = ()
    admitted: tuple[RequestState, ...] = ()
    joining: tuple[RequestState, ...] = ()
    expired: tuple[RequestState, ...] = ()
    work: TickWork = field(default_factory=TickWork)
    seconds: float = 0.0
    sizes: tuple[int, ...] = (0, 0, 0, 0)
    slacks: tuple[float, ...] = ()
    preempted: tuple[RequestState, ...] = ()
    lost_tokens: int = 0
    copies: tuple[PageCopy, ...] = ()
    step: SliceStep | None = None

    @property
    def empty(self) -> bool:
        """Whether it has nothing to run."""
        return not self.states and self.step is None

    @property
    def touched(self) -> tuple[RequestState, ...]:
        """Every request that an error hits while it is announced or submitted."""
        held = () if self.step is None else tuple(state for stage in self.step.states for state in stage)
        return (*self.states, *self.admitted, *held)


class Attempt(Enum):
    """The outcome of trying to give a prompt a chunk."""

    PLANNED = "planned"
    TOO_LARGE = "too large"
    """No chunk of the prompt fits the tick."""
    SLICED = "sliced"
    """The prompt runs in slices, or will."""
    NO_PAGES = "no pages"
    """The request waits: no slot is free, or too few pages are."""


class SliceTurn(NamedTuple):
    """Whether a slice comes before the next tick.

    Args:
        due: whether one comes, if there is time.
        owed: whether one must run, whatever its time.
        waiting: the first prompt of the order, if it is not in the slice lane: it may have to wait for other chunks.
    """

    due: bool
    owed: bool = False
    waiting: RequestState | None = None


@dataclass(slots=True)
class OpenPlan:
    """An unfinished plan. Fields not listed are as in `Planned`.

    Args:
        sampling: requests with a chunk in the plan that samples a token.
        tried: prompts tried for the tick.
        prompts: number of prompt chunks.
        too_large: prompts tried that do not fit the tick.
        blocked: waiting requests tried without free pages for them.
        decode_tpot, left_tpot: least TPOT target of the decodes, and of those that found no row, in seconds.
        decode_seconds: predicted for the tick with its decodes alone.
        ending_tpot: least TPOT target of the prompts that end in the plan, in seconds.
    """

    tick: int
    now: float
    budget: TickBudget
    chunks: list[Chunk] = field(default_factory=list)
    states: list[RequestState] = field(default_factory=list)
    slacks: list[float] = field(default_factory=list)
    joining: list[RequestState] = field(default_factory=list)
    admitted: list[RequestState] = field(default_factory=list)
    preempted: list[RequestState] = field(default_factory=list)
    lost_tokens: int = 0
    sampling: list[RequestState] = field(default_factory=list)
    tried: set[RequestState] = field(default_factory=set)
    prompts: int = 0
    too_large: int = 0
    blocked: int = 0
    decode_tpot: float = math.inf
    left_tpot: float = math.inf
    decode_seconds: float = 0.0
    ending_tpot: float = math.inf

    def add(self, state: RequestState, chunk: Chunk, slack: float) -> None:
        """Take a chunk."""
        self.chunks.append(chunk)
        self.states.append(state)
        self.slacks.append(slack)
        if chunk.last:
            self.sampling.append(state)

    def full(self, target: TickTarget) -> bool:
        """Whether no further prompt chunk fits, by rows or by time."""
        return self.budget.full or (self.prompts > 0 and not self.budget.more_fits(target.seconds))

    def close(
        self, expired: Sequence[RequestState], copies: tuple[PageCopy, ...], step: SliceStep | None = None
    ) -> Planned:
        """The finished plan; `expired` are the requests that were dropped before it."""
        if step is None:
            work, seconds = self.budget.tick
            sizes = self.budget.sizes
        else:
            work, seconds, sizes = step.work, step.seconds, step.sizes
        return Planned(
            plan=StepPlan(tuple(self.chunks)),
            states=tuple(self.states),
            admitted=tuple(self.admitted),
            joining=tuple(self.joining),
            expired=tuple(expired),
            work=work,
            seconds=seconds,
            sizes=sizes,
            slacks=tuple(self.slacks),
            preempted=tuple(self.preempted),
            lost_tokens=self.lost_tokens,
            copies=copies,
            step=step,
        )
