"""An executor that computes nothing: each tick moves a virtual clock by the seconds of a time model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

from medha_jax.config import RuntimeConfig
from medha_jax.plan import Admission, StepPlan, TokenResult
from medha_jax.simulate.clock import Clock
from medha_jax.simulate.times import GroupTimes, GroupWork
from medha_jax.specs.buckets import NO_ROWS, Bucket, Segment, smallest_bucket
from medha_jax.specs.chunk_work import chunk_attention
from medha_jax.specs.sizes import UNBOUNDED, Sizes

VOCAB = 2**31
Slowed = Callable[[float, float, Bucket], float]  # start, usual seconds, shape -> seconds of the tick


class SimulationError(RuntimeError):
    """The engine asked for something that no runtime can do."""


@dataclass(frozen=True)
class SimulatedTick:
    """A dispatched tick: the plan that leaves the last stage in it, and the second at which it ends."""

    leaving: StepPlan
    ends: float


@dataclass
class Totals:
    """What was computed so far; `seconds` of all ticks. Owned by the executor.

    Args:
        tokens: rows of all chunks, without padding.
        attention: sum over these rows, decodes included, of the context that each sees, in tokens².
    """

    ticks: int = 0
    seconds: float = 0.0
    tokens: int = 0
    attention: float = 0.0


class _Stage(NamedTuple):
    """Work of one stage in a tick.

    Args:
        own: largest own rows of any group.
        shared: rows that all groups compute.
        work: of each group.
        tokens, attention: of its chunks, as in `Totals`.
    """

    own: Segment
    shared: Segment
    work: tuple[GroupWork, ...]
    tokens: int = 0
    attention: float = 0.0


EMPTY = _Stage(NO_ROWS, NO_ROWS, (GroupWork(),))


class SimulatedExecutor:
    """Runs plans on a clock. A tick takes the seconds of its slowest stage, because stages run in lockstep.

    It has the rules of a real executor: plans fit its shapes, the chunks of a request follow each other, and a plan
    leaves `spp - 1` ticks after it entered. Owns the stages, and the time until which they are busy.

    Args:
        config: only mesh, slots and pool are read.
        context: most tokens of one request.
        times: seconds of every group's part of a tick.
        clock: moved on when results are collected.
        slowed: tick seconds of a machine whose speed changes; None for a constant speed.
        vocab: entries of the vocabulary.
        token: the result of every chunk.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        context: int,
        times: GroupTimes,
        clock: Clock,
        slowed: Slowed | None = None,
        vocab: int = VOCAB,
        token: int = 1,
    ) -> None:
        self.config, self.sizes, self.vocab = config, Sizes.of(config, context), vocab
        self.prefix_cacheable, self.ahead = True, 0  # no host waits during a tick
        self.totals = Totals()
        self._times, self._clock, self._slowed = times, clock, slowed
        self._token = TokenResult(token)
        self._smallest_bucket = lru_cache(partial(smallest_bucket, config.mesh.buckets, config.mesh.spread_buckets))
        self._free_at = 0.0
        self._flight = [(StepPlan(()), EMPTY)] * config.mesh.spp
        self._next: dict[int, int | None] = {}

    def usable(self) -> bool:
        """Whether it can go on after an error: always, because a refused plan changes nothing."""
        return True

    def renew(self) -> None:
        """Start again with nothing in flight."""
        self._flight = [(StepPlan(()), EMPTY)] * self.config.mesh.spp
        self._next.clear()

    def admit(self, admission: Admission) -> None:
        """Give a slot to a request."""
        self._next[admission.slot] = None

    def adopt(self, slot: int, group: int, pages: Sequence[int]) -> None:
        """Let an admitted request begin after pages that are already filled."""
        self._next[slot] = len(pages) * self.config.mesh.page_size

    def submit(self, plan: StepPlan) -> SimulatedTick:
        """Dispatch one tick: `plan` enters the first stage and an earlier plan leaves the last.

        Raises:
            SimulationError: the chunks of a request do not follow each other.
            UnknownShapeError: the plans in flight are larger than every compiled shape.
        """
        stage, ends = self._enter(plan)
        flight = [(plan, stage), *self._flight[:-1]]
        stages = [stage for _, stage in flight]
        bucket, seconds_of = self._bucket(stages), self._times.group_seconds
        seconds = max(seconds_of(bucket, work) for stage in stages for work in stage.work)
        self._next.update(ends)
        self._flight = flight
        began = max(self._clock(), self._free_at)
        if self._slowed is not None:
            seconds = self._slowed(began, seconds, bucket)
        self._free_at = began + seconds
        self.totals.ticks += 1
        self.totals.seconds += seconds
        self.totals.tokens += stage.tokens
        self.totals.attention += stage.attention
        return SimulatedTick(flight[-1][0], self._free_at)

    def collect(self, handle: SimulatedTick) -> list[TokenResult]:
        """Wait for a tick; returns one result for each chunk of the plan that leaves."""
        self._clock.advance_to(handle.ends)
        return [self._token] * len(handle.leaving.chunks)

    def _enter(self, plan: StepPlan) -> tuple[_Stage, dict[int, int]]:
        """Work of the first stage for a plan, and the next position of each slot; no state changes yet."""
        known, per_group = self._next, self.sizes.per_group
        shared = GroupWork()
        own: dict[int, GroupWork] = {}
        ends: dict[int, int] = {}
        tokens, attention = 0, 0.0
        for chunk in plan.chunks:
            slot, start, length, groups = chunk.slot, chunk.start, chunk.length, chunk.groups
            expected = known.get(slot, -1)
            if expected != start and expected is not None:
                raise SimulationError(f"slot {slot} is at {expected} tokens; a chunk came that starts at {start}")
            ends[slot] = start + length
            work = shared if len(groups) > 1 else own.get(groups[0])
            if work is None:
                work = own[groups[0]] = GroupWork()
            work.add(start, length, per_group)
            tokens += length
            # most chunks are decodes, which see their own position and all before it
            attention += start + 1 if length == 1 else chunk_attention(start, length, UNBOUNDED)
        works = tuple(own.values()) or EMPTY.work
        need = works[0].segment if len(works) == 1 else Segment.holding([work.segment for work in works])
        if not shared.rows:
            return _Stage(need, NO_ROWS, works, tokens, attention), ends
        return _Stage(need, shared.segment, tuple(shared + work for work in works), tokens, attention), ends

    def _bucket(self, stages: Sequence[_Stage]) -> Bucket:
        """The smallest shape that holds the work of every stage; all stages run in it."""
        own = Segment.holding([stage.own for stage in stages])
        shared = Segment.holding([stage.shared for stage in stages])
        return self._smallest_bucket(own, shared)
