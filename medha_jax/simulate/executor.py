"""An executor that computes nothing: each tick or slice moves a virtual clock by the seconds of a time model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

from medha_jax.config import RuntimeConfig
from medha_jax.plan import NO_HOST, Admission, PageCopy, ScoreQuery, Slice, StepPlan, TokenResult
from medha_jax.simulate.clock import Clock
from medha_jax.simulate.held_chunks import NO_PLAN, HeldChunks, SimulationError
from medha_jax.simulate.times import GroupTimes, GroupWork
from medha_jax.specs.buckets import NO_ROWS, Bucket, Segment, smallest_bucket, smallest_slice
from medha_jax.specs.chunk_work import chunk_attention
from medha_jax.specs.shape_grid import ShapeGrid
from medha_jax.specs.sizes import UNBOUNDED, Sizes

VOCAB = 2**31
Slowed = Callable[[float, float, Bucket], float]  # start, usual seconds, shape -> seconds of the tick
UNSAMPLED = TokenResult(0)  # of a chunk that ran in slices


@dataclass(frozen=True)
class SimulatedTick:
    """A dispatched tick or slice: the plan that leaves the last stage in it, and the second at which it ends.

    `result` is that of every chunk that leaves.
    """

    leaving: StepPlan
    ends: float
    result: TokenResult


@dataclass
class Totals:
    """What was computed so far; `seconds` of all ticks and slices. Owned by the executor.

    Args:
        slice_seconds: seconds of the slices among them.
        tokens: rows of all chunks, without padding.
        attention: sum over these rows, decodes included, of the context that each sees, in tokens².
        longest: seconds of the longest tick or slice.
    """

    ticks: int = 0
    slices: int = 0
    seconds: float = 0.0
    slice_seconds: float = 0.0
    longest: float = 0.0
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
    """Runs plans on a clock. A tick or slice takes the seconds of its slowest stage: stages run in lockstep.

    It has the rules of a real executor: plans fit its shapes, the chunks of a request follow each other, a plan leaves
    `spp - 1` ticks after it entered, and the slices of a round pass all layers without gaps. A request is in one lane
    at a time: in ticks or in slices. Owns the stages, and the time until which they are busy.

    Args:
        config: only mesh, slots and pool are read.
        context: most tokens of one request.
        times: seconds of every group's part of a tick or slice.
        clock: moved on when results are collected.
        slowed: tick seconds of a machine whose speed changes; None for a constant speed.
        vocab: entries of the vocabulary.
        token: the result of every chunk of a tick.
        slice_lengths: numbers of layers that a slice may have, increasing; the last one is all layers of a stage.
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
        slice_lengths: tuple[int, ...] = (1,),
    ) -> None:
        self.config, self.sizes, self.vocab = config, Sizes.of(config, context), vocab
        self.prefix_cacheable, self.ahead = True, 0  # no host waits during a tick
        self.host, self.grid = NO_HOST, ShapeGrid.of(config.mesh)
        self.totals = Totals()
        self._times, self._clock, self._slowed = times, clock, slowed
        self._token = TokenResult(token)
        self._smallest_bucket = lru_cache(partial(smallest_bucket, config.mesh.buckets, config.mesh.spread_buckets))
        self.slice_lengths = slice_lengths
        self._held = HeldChunks(config.mesh.spp, slice_lengths)
        self._free_at = 0.0
        self._flight = [(NO_PLAN, EMPTY)] * config.mesh.spp
        self._next: dict[int, int | None] = {}

    def usable(self) -> bool:
        """Whether it can go on after an error: always, because a refused plan changes nothing."""
        return True

    def renew(self) -> None:
        """Start again with nothing in flight."""
        self._flight = [(NO_PLAN, EMPTY)] * self.config.mesh.spp
        self._held.renew()
        self._next.clear()

    def grow(self) -> None:
        """There is nothing to wait for: every shape is there from the start."""

    def admit(self, admission: Admission) -> None:
        """Give a slot to a request."""
        self._held.forget(admission.slot)
        self._next[admission.slot] = None

    def set_masks(self, slots: Sequence[int], masks: object) -> None:
        """Refuse: nothing is computed here.

        Raises:
            SimulationError: always.
        """
        raise SimulationError("a simulated machine samples no tokens")

    def adopt(self, slot: int, group: int, pages: Sequence[int]) -> None:
        """Let an admitted request begin after pages that are already filled."""
        self._next[slot] = len(pages) * self.config.mesh.page_size

    def copy_pages(self, copies: Sequence[PageCopy]) -> None:
        """Refuse: there is no host tier here.

        Raises:
            SimulationError: always.
        """
        raise SimulationError("a simulated machine has no host tier")

    def score(self, handle: object, queries: Mapping[int, ScoreQuery]) -> object:
        """Refuse: nothing is computed here.

        Raises:
            SimulationError: always.
        """
        raise SimulationError("a simulated machine computes no log-probabilities")

    def submit(self, plan: StepPlan) -> SimulatedTick:
        """Dispatch one tick: `plan` enters the first stage and an earlier plan leaves the last.

        Raises:
            SimulationError: the chunks of a request do not follow each other, or one of them is in slices.
            UnknownShapeError: the plans in flight are larger than every compiled shape.
        """
        stage, ends = self._enter(plan)
        flight = [(plan, stage), *self._flight[:-1]]
        stages = [stage for _, stage in flight]
        bucket, seconds_of = self._bucket(stages), self._times.group_seconds
        seconds = max(seconds_of(bucket, work) for stage in stages for work in stage.work)
        self._next.update(ends)
        self._flight = flight
        self._run(seconds, bucket, stage)
        self.totals.ticks += 1
        return SimulatedTick(flight[-1][0], self._free_at, self._token)

    def submit_slice(self, work: Slice) -> SimulatedTick:
        """Dispatch a slice: some layers of every stage, for one chunk of each group and a shared one.

        Raises:
            SimulationError: it does not follow the slice before it, or a request has chunks in the ticks' pipeline.
            UnknownShapeError: a chunk is larger than every compiled shape of slices.
        """
        held = self._held
        entering, dropped = held.entering(work), held.dropped(work)
        cursors = {chunk.slot: chunk.start for chunk in dropped}  # the first one comes last
        for slot, start, length, *_ in entering:
            self._follows(slot, start, cursors.get(slot, self._next.get(slot, -1)))
            if any(chunk.slot == slot for plan, _ in self._flight[:-1] for chunk in plan.chunks):
                raise SimulationError(f"a slice of slot {slot} came while its chunks are in the pipeline of ticks")
            cursors[slot] = start + length
        stages = [self._work(plan) for plan in work.stages]
        mesh = self.config.mesh
        own, shared = (max(getattr(stage, kind).prefill for stage in stages) for kind in ("own", "shared"))
        shape = smallest_slice(mesh.buckets, mesh.spread_buckets, own, shared)
        layers, seconds_of = work.past - work.first, self._times.slice_seconds
        seconds = max(seconds_of(shape, layers, one) for stage in stages for one in stage.work)
        self._next.update(cursors)
        held.advance(work)
        took = self._run(seconds, shape, EMPTY if work.first else stages[0])
        self.totals.slices += 1
        self.totals.slice_seconds += took
        done = work.past == self.slice_lengths[-1]
        return SimulatedTick(work.stages[-1] if done else NO_PLAN, self._free_at, UNSAMPLED)

    def collect(self, handle: SimulatedTick) -> list[TokenResult]:
        """Wait for a tick or slice; returns one result for each chunk that leaves the last stage."""
        self._clock.advance_to(handle.ends)
        return [handle.result] * len(handle.leaving.chunks)

    def _run(self, seconds: float, shape: Bucket, entered: _Stage) -> float:
        """Keep the stages busy for so many usual seconds; returns those that it takes."""
        began = max(self._clock(), self._free_at)
        if self._slowed is not None:
            seconds = self._slowed(began, seconds, shape)
        self._free_at = began + seconds
        self.totals.seconds += seconds
        self.totals.longest = max(self.totals.longest, seconds)
        self.totals.tokens += entered.tokens
        self.totals.attention += entered.attention
        return seconds

    def _enter(self, plan: StepPlan) -> tuple[_Stage, dict[int, int]]:
        """Work of the first stage for a plan, and the next position of each slot; no state changes yet."""
        known, held = self._next, self._held.slots
        ends: dict[int, int] = {}
        for chunk in plan.chunks:
            slot, start = chunk.slot, chunk.start
            self._follows(slot, start, known.get(slot, -1))
            if slot in held:
                raise SimulationError(f"a tick has a chunk of slot {slot}, whose chunk in slices is unfinished")
            ends[slot] = start + chunk.length
        return self._work(plan), ends

    @staticmethod
    def _follows(slot: int, start: int, expected: int | None) -> None:
        """Check that a chunk starts where its request is; None is a request that may start anywhere."""
        if expected != start and expected is not None:
            raise SimulationError(f"slot {slot} is at {expected} tokens; a chunk came that starts at {start}")

    def _work(self, plan: StepPlan) -> _Stage:
        """Work of a stage for a plan."""
        per_group = self.sizes.per_group
        shared = GroupWork()
        own: dict[int, GroupWork] = {}
        tokens, attention = 0, 0.0
        for chunk in plan.chunks:
            start, length, groups = chunk.start, chunk.length, chunk.groups
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
            return _Stage(need, NO_ROWS, works, tokens, attention)
        return _Stage(need, shared.segment, tuple(shared + work for work in works), tokens, attention)

    def _bucket(self, stages: Sequence[_Stage]) -> Bucket:
        """The smallest shape that holds the work of every stage; all stages run in it."""
        own = Segment.holding([stage.own for stage in stages])
        shared = Segment.holding([stage.shared for stage in stages])
        return self._smallest_bucket(own, shared)
