"""An executor that computes nothing: it takes the time that a time model predicts, on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import NamedTuple

from medha_jax.config import RuntimeConfig
from medha_jax.plan import Admission, StepPlan, TokenResult
from medha_jax.simulate.clock import Clock
from medha_jax.simulate.times import GroupTimes, GroupWork
from medha_jax.specs.buckets import NO_ROWS, Bucket, Segment, smallest_bucket
from medha_jax.specs.chunk_work import chunk_attention
from medha_jax.specs.sizes import UNBOUNDED, Sizes

VOCAB = 2**31
Slowed = Callable[[float, float, Bucket], float]  # seconds of a tick: of when it begins, its usual seconds, its shape


class SimulationError(RuntimeError):
    """The engine asked for something that no runtime could do."""


@dataclass(frozen=True)
class SimulatedTick:
    """A tick that was dispatched: the plan that leaves the last stage in it, and when that will be, in seconds."""

    leaving: StepPlan
    ends: float


@dataclass
class Totals:
    """What was computed so far. Owned by the executor.

    Args:
        ticks: how many ran.
        seconds: that they took.
        tokens: rows of all chunks, without padding.
        attention: their rows times the context that each sees, in tokens²; of rows that came alone too.
    """

    ticks: int = 0
    seconds: float = 0.0
    tokens: int = 0
    attention: float = 0.0


class _Stage(NamedTuple):
    """What a stage does in a tick.

    Args:
        own: most of any group's own rows.
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
    """Runs plans in no time of its own; a tick takes the seconds of its slowest stage, all stages being in lockstep.

    It keeps the rules of a real one: plans must fit its shapes, a request's chunks must follow each other, and a plan
    leaves `spp - 1` ticks after it entered. Owner of the stages, and of the moment until which they are busy.

    Args:
        config: mesh, slots and pool; its model is not read.
        context: most tokens of one request.
        times: seconds of every group's part of a tick.
        clock: moved on when results are collected.
        slowed: on a machine that is not always as fast; None for always the usual seconds.
        vocab: entries of the vocabulary.
        token: that every chunk gives.
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
        self.prefix_cacheable, self.ahead = True, 0  # no host waits while a tick runs
        self.totals = Totals()
        self._times, self._clock, self._slowed = times, clock, slowed
        self._token = TokenResult(token)
        self._free_at = 0.0
        self._flight = [(StepPlan(()), EMPTY)] * config.mesh.spp
        self._next: dict[int, int | None] = {}

    def usable(self) -> bool:
        """Whether it goes on after an error; what it refuses it has not taken."""
        return True

    def renew(self) -> None:
        """Begin again with nothing in flight."""
        self._flight = [(StepPlan(()), EMPTY)] * self.config.mesh.spp
        self._next.clear()

    def admit(self, admission: Admission) -> None:
        """Give a slot to a request."""
        self._next[admission.slot] = None

    def adopt(self, slot: int, group: int, pages: Sequence[int]) -> None:
        """Let an admitted request begin after pages that are filled already."""
        self._next[slot] = len(pages) * self.config.mesh.page_size

    def submit(self, plan: StepPlan) -> SimulatedTick:
        """Dispatch one tick, in which `plan` enters the first stage and an earlier one leaves the last.

        Raises:
            SimulationError: a request's chunks do not follow each other.
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
        """Wait for a tick; one result a chunk of its leaving plan."""
        self._clock.advance_to(handle.ends)
        return [self._token] * len(handle.leaving.chunks)

    def _enter(self, plan: StepPlan) -> tuple[_Stage, dict[int, int]]:
        """What the first stage does for a plan, and where it leaves each slot; nothing is taken yet."""
        known, per_group = self._next, self.sizes.per_group
        shared, own = GroupWork(), dict[int, GroupWork]()
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
            attention += chunk_attention(start, length, UNBOUNDED)
        works = tuple(own.values()) or EMPTY.work
        need = reduce(or_, [work.segment for work in works])
        if not shared.rows:
            return _Stage(need, NO_ROWS, works, tokens, attention), ends
        return _Stage(need, shared.segment, tuple(shared + work for work in works), tokens, attention), ends

    def _bucket(self, stages: Sequence[_Stage]) -> Bucket:
        """The smallest shape that holds what every stage does; all run in it."""
        mesh = self.config.mesh
        own = reduce(or_, [stage.own for stage in stages])
        shared = reduce(or_, [stage.shared for stage in stages])
        return smallest_bucket(mesh.buckets, mesh.spread_buckets, own, shared)
