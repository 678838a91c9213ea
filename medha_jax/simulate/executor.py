"""An executor that computes nothing: it takes the time that a time model predicts, on a virtual clock."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from medha_jax.config import Buckets, RuntimeConfig
from medha_jax.kv.allocator import pages_for
from medha_jax.plan import Chunk, SamplingParams, StepPlan
from medha_jax.scheduler.work import TickWork, TimeModel
from medha_jax.simulate.clock import VirtualClock

VOCAB = 2**31
UNBOUNDED = 2**30


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
    """Rows of one kind, in the units of `TickWork`."""

    singles: int = 0
    tokens: int = 0
    chunks: int = 0
    attention: float = 0.0
    context: int = 0

    def add(self, chunk: Chunk, per_group: int) -> None:
        """Take in a chunk, as the group sees it that holds most of its context."""
        end = chunk.end
        self.context += min(end, per_group)
        if chunk.length == 1:
            self.singles += 1
            return
        self.tokens += chunk.length
        self.chunks += 1
        if end > per_group:
            self.attention += chunk.length * per_group
        else:
            self.attention += chunk.length * (chunk.start + end + 1) / 2


@dataclass(frozen=True, slots=True)
class _Stage:
    """What a stage does in a tick: rows that all groups share, and those of each group that has any."""

    shared: _Rows
    own: tuple[_Rows, ...] = field(default_factory=lambda: (_Rows(),))


class SimulatedExecutor:
    """Runs plans in no time of its own; a tick takes the seconds of its slowest stage, all stages being in lockstep.

    It keeps the rules of a real one: plans must fit its shapes, a request's chunks must follow each other, and a plan
    leaves `spp - 1` ticks after it entered. Owner of the stages, and of the moment until which they are busy.

    Args:
        config: mesh, slots and pool; its model is not read.
        context: most tokens of one request.
        model: seconds of a tick.
        clock: moved on when results are collected.
    """

    def __init__(self, config: RuntimeConfig, context: int, model: TimeModel, clock: VirtualClock) -> None:
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
        self._model, self._clock = model, clock
        self._token = SimulatedToken()
        self._free_at = 0.0
        empty = StepPlan(())
        self._flight = [(empty, _Stage(_Rows()))] * mesh.spp
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
        flight = [(plan, self._stage(plan)), *self._flight][: self.layout.spp]
        seconds = self._seconds([stage for _, stage in flight])
        self._take(plan)
        self._flight = flight
        self._free_at = max(self._clock(), self._free_at) + seconds
        totals = self.totals
        totals.ticks += 1
        totals.seconds += seconds
        return SimulatedTick(flight[-1][0], self._free_at)

    def collect(self, handle: SimulatedTick) -> list[SimulatedToken]:
        """Wait for a tick; one result a chunk of its leaving plan."""
        self._clock.advance_to(handle.ends)
        return [self._token] * len(handle.leaving.chunks)

    def _take(self, plan: StepPlan) -> None:
        """Note where the requests of a plan are, and what it computes."""
        known, totals = self._next, self.totals
        for chunk in plan.chunks:
            slot, start, end = chunk.slot, chunk.start, chunk.start + chunk.length
            expected = known.get(slot, -1)
            if expected != start and expected is not None:
                raise SimulationError(f"slot {slot} is at {expected} tokens; a chunk came that starts at {start}")
            known[slot] = end
            totals.tokens += chunk.length
            totals.attention += chunk.length * (start + end + 1) / 2

    def _stage(self, plan: StepPlan) -> _Stage:
        shared, own = _Rows(), dict[int, _Rows]()
        for chunk in plan.chunks:
            group = chunk.groups[0]
            if len(chunk.groups) > 1:
                rows = shared
            elif group in own:
                rows = own[group]
            else:
                rows = own[group] = _Rows()
            rows.add(chunk, self.sizes.per_group)
        return _Stage(shared, tuple(own.values()) or (_Rows(),))

    def _seconds(self, stages: Sequence[_Stage]) -> float:
        """Seconds of a tick: all stages run in the largest shape, and wait for the slowest one's context."""
        mesh = self.config.mesh
        tokens = _padded(mesh.buckets, [rows for stage in stages for rows in stage.own])
        shared = [stage.shared for stage in stages if stage.shared.context]
        if shared:
            tokens += _padded(mesh.shared_buckets or mesh.buckets, shared)
        seconds = self._model.seconds
        slowest = 0.0
        for stage in stages:
            common = stage.shared
            for rows in stage.own:
                work = TickWork(
                    tokens=tokens,
                    attention=common.attention + rows.attention,
                    context=common.context + rows.context,
                    rows=common.singles + common.chunks + rows.singles + rows.chunks,
                )
                slowest = max(slowest, seconds(work))
        return slowest


def _padded(buckets: Buckets, kinds: Sequence[_Rows]) -> int:
    """Rows of the smallest shape that holds every one of these.

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
    return decode[bisect_left(decode, singles)] + prefill[bisect_left(prefill, tokens)]
