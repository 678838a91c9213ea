"""An executor that computes nothing: it takes the time that a time model predicts, on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from medha_jax.config import RuntimeConfig
from medha_jax.plan import Admission, StepPlan, TokenResult
from medha_jax.simulate.clock import Clock
from medha_jax.simulate.times import GroupTimes, GroupWork, chunk_work
from medha_jax.specs.buckets import NO_ROWS, Bucket, Segment, smallest_bucket
from medha_jax.specs.sizes import UNBOUNDED, Sizes
from medha_jax.specs.work import chunk_attention

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


@dataclass(slots=True)
class _Rows:
    """Rows of one kind that a stage computes; `work` is theirs, on the group that holds most of their context."""

    singles: int = 0
    tokens: int = 0
    chunks: int = 0
    work: GroupWork = field(default_factory=GroupWork)

    @property
    def need(self) -> Segment:
        """What a shape must hold for them."""
        return Segment(self.singles, self.tokens, self.chunks)

    def add(self, start: int, length: int, per_group: int) -> None:
        """Take in a chunk."""
        chunk_work(self.work, start, length, per_group)
        if length == 1:
            self.singles += 1
        else:
            self.tokens += length
            self.chunks += 1


class _Stage(NamedTuple):
    """What a stage does in a tick: most of any group's own rows, rows that all groups share, and each group's work."""

    own: Segment
    shared: Segment
    work: tuple[GroupWork, ...]


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
        totals = self.totals
        totals.ticks += 1
        totals.seconds += seconds
        tokens, attention = 0, 0.0
        for chunk in plan.chunks:
            tokens += chunk.length
            attention += chunk_attention(chunk.start, chunk.length, UNBOUNDED)
        totals.tokens += tokens
        totals.attention += attention
        return SimulatedTick(flight[-1][0], self._free_at)

    def collect(self, handle: SimulatedTick) -> list[TokenResult]:
        """Wait for a tick; one result a chunk of its leaving plan."""
        self._clock.advance_to(handle.ends)
        return [self._token] * len(handle.leaving.chunks)

    def _enter(self, plan: StepPlan) -> tuple[_Stage, dict[int, int]]:
        """What the first stage does for a plan, and where it leaves each slot; nothing is taken yet."""
        known, per_group = self._next, self.sizes.per_group
        shared: _Rows | None = None
        own: dict[int, _Rows] = {}
        ends: dict[int, int] = {}
        for chunk in plan.chunks:
            slot, start, length, groups = chunk.slot, chunk.start, chunk.length, chunk.groups
            expected = known.get(slot, -1)
            if expected != start and expected is not None:
                raise SimulationError(f"slot {slot} is at {expected} tokens; a chunk came that starts at {start}")
            ends[slot] = start + length
            if len(groups) > 1:
                rows = shared = shared or _Rows()
            elif groups[0] in own:
                rows = own[groups[0]]
            else:
                rows = own[groups[0]] = _Rows()
            rows.add(start, length, per_group)
        need = NO_ROWS
        for rows in own.values():
            need |= rows.need
        works = tuple(rows.work for rows in own.values()) or EMPTY.work
        if shared is None:
            return _Stage(need, NO_ROWS, works), ends
        return _Stage(need, shared.need, tuple(shared.work + work for work in works)), ends

    def _bucket(self, stages: Sequence[_Stage]) -> Bucket:
        """The smallest shape that holds what every stage does; all run in it."""
        mesh, own, shared = self.config.mesh, NO_ROWS, NO_ROWS
        for stage in stages:
            own, shared = own | stage.own, shared | stage.shared
        return smallest_bucket(mesh.buckets, mesh.shared_buckets or mesh.buckets, own, shared)
