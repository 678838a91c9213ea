"""An executor that computes nothing: it takes the time that a time model predicts, on a virtual clock."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from medha_jax.config import Buckets, RuntimeConfig
from medha_jax.plan import SamplingParams, StepPlan
from medha_jax.simulate.clock import VirtualClock
from medha_jax.simulate.times import GroupTimes, GroupWork, Shape, chunk_work
from medha_jax.specs.sizes import pages_for

VOCAB = 2**31
UNBOUNDED = 2**30
Slowed = Callable[[float, float, Shape], float]  # seconds of a tick: of when it begins, its usual seconds, its shape


class SimulationError(RuntimeError):
    """The engine asked for something that no runtime could do."""


@dataclass(frozen=True)
class SimulatedModel:
    """What an engine asks of a model: entries of its vocabulary."""

    vocab: int = VOCAB


@dataclass(frozen=True)
class SimulatedLayout:
    """Sizes of the mesh axes."""

    tp: int
    spp: int
    kvp: int


@dataclass(frozen=True)
class SimulatedSizes:
    """Context and pool; tokens and pages are those of one group."""

    context: int
    per_group: int
    pages: int


@dataclass(frozen=True)
class SimulatedToken:
    """What every tick gives for every chunk."""

    token: int = 1
    finite: bool = True
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


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

    def add(self, start: int, length: int, per_group: int) -> None:
        """Take in a chunk."""
        chunk_work(self.work, start, length, per_group)
        if length == 1:
            self.singles += 1
        else:
            self.tokens += length
            self.chunks += 1


class _Stage(NamedTuple):
    """What a stage does in a tick: rows that each group has of its own, those that all share, and each group's work."""

    own: tuple[_Rows, ...]
    shared: _Rows | None
    work: tuple[GroupWork, ...]


EMPTY = _Stage((_Rows(),), None, (GroupWork(),))


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
    """

    def __init__(
        self,
        config: RuntimeConfig,
        context: int,
        times: GroupTimes,
        clock: VirtualClock,
        slowed: Slowed | None = None,
    ) -> None:
        mesh = config.mesh
        per_group = UNBOUNDED
        if mesh.kvp > 1:
            per_group = mesh.tokens_per_group or pages_for(context, mesh.page_size) * mesh.page_size
            context = min(context, mesh.kvp * per_group)
        pages = pages_for(config.pool_tokens or min(context, per_group), mesh.page_size)
        self.config = config
        self.arch = SimulatedModel()
        self.layout = SimulatedLayout(mesh.tp, mesh.spp, mesh.kvp)
        self.sizes = SimulatedSizes(context, per_group, pages)
        self.totals = Totals()
        self._times, self._clock, self._slowed = times, clock, slowed
        self._token = SimulatedToken()
        self._free_at = 0.0
        self._flight = [(StepPlan(()), EMPTY)] * mesh.spp
        self._next: dict[int, int | None] = {}

    @property
    def context(self) -> int:
        """Most tokens of one request, prompt and output."""
        return self.sizes.context

    @property
    def pages(self) -> int:
        """Pages in each group's pool."""
        return self.sizes.pages

    @property
    def per_group(self) -> int:
        """Tokens of one request that a group holds; without bound where there is one group only."""
        return self.sizes.per_group

    @property
    def prefix_cacheable(self) -> bool:
        """Whether the KV of a prefix is the same whatever follows it."""
        return True

    @property
    def ahead(self) -> int:
        """None: time does not pass between ticks."""
        return 0

    def usable(self) -> bool:
        """Whether it goes on after an error; what it refuses it has not taken."""
        return True

    def renew(self) -> None:
        """Begin again with nothing in flight."""
        self._flight = [(StepPlan(()), EMPTY)] * self.config.mesh.spp
        self._next.clear()

    def admit(
        self,
        slot: int,
        sampling: SamplingParams,
        prompt: int,
        end_tokens: Sequence[int],
        prompted: Sequence[int] = (),
        generated: Sequence[int] = (),
    ) -> None:
        """Give `slot` to a request."""
        self._next[slot] = None

    def adopt(self, slot: int, group: int, pages: Sequence[int]) -> None:
        """Let an admitted request begin after pages that are filled already."""
        self._next[slot] = len(pages) * self.config.mesh.page_size

    def submit(self, plan: StepPlan) -> SimulatedTick:
        """Dispatch one tick, in which `plan` enters the first stage and an earlier one leaves the last.

        Raises:
            SimulationError: the plan fits no shape, or a request's chunks do not follow each other.
        """
        stage, ends = self._enter(plan)
        flight = [(plan, stage), *self._flight[:-1]]
        stages = [stage for _, stage in flight]
        shape, seconds_of = self._shape(stages), self._times.group_seconds
        seconds = max(seconds_of(shape, work) for stage in stages for work in stage.work)
        self._next.update(ends)
        self._flight = flight
        began = max(self._clock(), self._free_at)
        if self._slowed is not None:
            seconds = self._slowed(began, seconds, shape)
        self._free_at = began + seconds
        totals = self.totals
        totals.ticks += 1
        totals.seconds += seconds
        tokens, attention = 0, 0.0
        for chunk in plan.chunks:
            length = chunk.length
            tokens += length
            attention += length * (2 * chunk.start + length + 1) / 2
        totals.tokens += tokens
        totals.attention += attention
        return SimulatedTick(flight[-1][0], self._free_at)

    def collect(self, handle: SimulatedTick) -> list[SimulatedToken]:
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
        every = tuple(own.values()) or EMPTY.own
        if shared is None:
            return _Stage(every, None, tuple(rows.work for rows in every)), ends
        return _Stage(every, shared, tuple(shared.work + rows.work for rows in every)), ends

    def _shape(self, stages: Sequence[_Stage]) -> Shape:
        """The smallest that holds what every stage does; all run in it."""
        mesh = self.config.mesh
        sizes = _padded(mesh.buckets, [rows for stage in stages for rows in stage.own])
        shared = [stage.shared for stage in stages if stage.shared is not None]
        return Shape(*sizes, *(_padded(mesh.shared_buckets or mesh.buckets, shared) if shared else ()))


def _padded(buckets: Buckets, kinds: Sequence[_Rows]) -> tuple[int, int]:
    """Decode and prompt rows of the smallest shape that holds every one of these.

    Raises:
        SimulationError: none does.
    """
    singles, tokens = max(rows.singles for rows in kinds), max(rows.tokens for rows in kinds)
    chunks = max(rows.chunks for rows in kinds)
    decode, prefill = buckets.decode, buckets.prefill_sizes
    if singles > decode[-1] or tokens > prefill[-1] or chunks > buckets.chunks:
        raise SimulationError(
            f"a plan of {singles} single tokens and {tokens} prompt tokens in {chunks} chunks fits no shape"
        )
    return decode[bisect_left(decode, singles)], prefill[bisect_left(prefill, tokens)]
