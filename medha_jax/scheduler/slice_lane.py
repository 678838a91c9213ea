"""The slice lane: prompt chunks that run some layers at a time (docs/architecture.md, "Slices")."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from medha_jax.plan import Chunk, Slice, StepPlan
from medha_jax.scheduler.chunking import weighed
from medha_jax.scheduler.request import RequestState
from medha_jax.scheduler.time_model import TickWork, WorkTimes, slice_work
from medha_jax.specs.buckets import smallest_size
from medha_jax.specs.chunk_work import chunk_attention, chunk_read
from medha_jax.specs.tick_shapes import TickShapes

MOST_SLOWED = 2.0  # times as long as without it that a chunk may make the round of others last


@dataclass(frozen=True)
class SliceStep:
    """A planned slice.

    Args:
        states: the request of each chunk of each stage, in the order of `slice.stages`.
        slacks: relative slack of each of these when its chunk entered.
        leaving: requests whose chunks leave the last stage with this slice, in the order of its plan.
        worked: predicted seconds of prompt work that it does for each request of the first stage.
        work: of the slowest stage.
        sizes: padded rows, as in `Planned.sizes`.
    """

    slice: Slice
    states: tuple[tuple[RequestState, ...], ...]
    slacks: tuple[tuple[float, ...], ...]
    leaving: tuple[RequestState, ...]
    worked: tuple[float, ...]
    work: TickWork
    seconds: float
    sizes: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Held:
    """A chunk in the lane, its seconds of prompt work, its attention in tokens² and the KV tokens that it reads."""

    state: RequestState
    chunk: Chunk
    slack: float
    work: float
    attention: float
    context: int


class SliceLane:
    """Owns the chunks that run in slices, and how many layers of the current round are planned.

    All stages run the same layers of their own chunks. After a round, every chunk is one stage further. A stage holds
    one chunk of each KV group, or one that is spread over several groups.
    """

    def __init__(self, shapes: TickShapes, times: WorkTimes) -> None:
        self._shapes, self._times = shapes, times
        self.clear()

    def use(self, shapes: TickShapes) -> None:
        """Take the shapes of another grid, which hold every chunk that is in the lane."""
        self._shapes = shapes

    def clear(self) -> None:
        """Forget all chunks: the devices have lost them."""
        self._stages: deque[list[_Held]] = deque([[] for _ in range(self._shapes.stages)], self._shapes.stages)
        self._done = 0

    @property
    def busy(self) -> bool:
        """Whether any stage holds a chunk."""
        return any(self._stages)

    @property
    def busy_s(self) -> float:
        """About the most seconds until the chunks in the lane have passed all stages, without the ticks in between."""
        return self._shapes.stages * self.seconds(self._shapes.layers)

    @property
    def between_rounds(self) -> bool:
        """Whether the next slice begins a round, so that chunks may enter."""
        return self._done == 0

    @property
    def states(self) -> list[RequestState]:
        """The requests of all chunks, each once; first those with a chunk in the first stage."""
        return list(dict.fromkeys(held.state for stage in self._stages for held in stage))

    def holds(self, state: RequestState) -> bool:
        """Whether a chunk of the request is in the lane."""
        return any(held.state is state for stage in self._stages for held in stage)

    def left(self, state: RequestState) -> float:
        """Predicted seconds until the last chunk of a request has left the lane, without the ticks in between."""
        for place, stage in enumerate(self._stages):
            if any(held.state is state for held in stage):
                layers = self._shapes.layers
                return self.seconds(layers) * (self._shapes.stages - place - self._done / layers)
        return 0.0

    def drop(self, state: RequestState) -> None:
        """Drop all chunks of a request that ends or loses its pages."""
        count = 0
        for stage in self._stages:
            before = len(stage)
            stage[:] = [held for held in stage if held.state is not state]
            count += before - len(stage)
        if count:
            state.drop_chunks(count)
            if not self.busy:
                self._done = 0

    def length(self, start: int, most: int, longest_layer: float = float("inf")) -> tuple[int, float]:
        """The best length of a chunk from position `start` (`weighed`), and its seconds per token through a stage.

        One layer of it takes at most `longest_layer` seconds, if there is such a length. `most` is the number of
        tokens that could run. (0, infinity) if no chunk of two tokens is possible.
        """
        sizes = self._shapes.buckets(start).slices
        if most < 2 or not sizes:
            return 0, float("inf")
        lengths = [size for size in sizes if size < most]
        if most <= sizes[-1]:
            lengths.append(most)
        best, least, cost = 0, float("inf"), 0.0
        for length in reversed(lengths):  # without any data, chunks are as large as the shapes allow
            work = self._work(start, length)
            seconds, layer = self._seconds(self._shapes.layers, work) / length, self._seconds(1, work)
            if layer > longest_layer and length > lengths[0]:
                continue
            if (measure := weighed(seconds, layer)) < least:
                best, least, cost = length, measure, seconds
        return best, cost

    def first_slice(self, start: int, most: int, longest_layer: float) -> tuple[int, float]:
        """The best length of a chunk from position `start`, as in `length`, and the seconds of its smallest slice."""
        length, _ = self.length(start, most, longest_layer)
        if not length:
            return 0, float("inf")
        return length, self._seconds(self._shapes.slice_lengths[0], self._work(start, length))

    def slows(self, state: RequestState, start: int, length: int) -> bool:
        """Whether a request's chunk from `start` would make the round of others last MOST_SLOWED times as long.

        Chunks of all stages run in lockstep. So it waits, while nothing else enters, until those have left.
        """
        if not any(held.state is not state for stage in self._stages for held in stage):
            return False
        return self._seconds(1, self._work(start, length)) > MOST_SLOWED * self.seconds(1)

    def enter(self, state: RequestState, chunk: Chunk, slack: float, work: float) -> None:
        """Let a chunk of `work` seconds enter the first stage; `slack` is its request's. Call it between rounds."""
        attention = chunk_attention(chunk.start, chunk.length, self._shapes.per_group)
        context = chunk_read(chunk.end, self._shapes.per_group)
        self._stages[0].append(_Held(state, chunk, slack, work, attention, context))

    def seconds(self, layers: int) -> float:
        """Predicted seconds of a slice of so many layers."""
        return self._seconds(layers, self._slowest(layers))

    def layers_within(self, seconds: float) -> int:
        """The most layers of the next slice that take at most these seconds; 0 if none do.

        Half of what is left, if nothing is known about the time of slices yet: then their lengths vary from the start.
        """
        left = self._shapes.layers - self._done
        fitting = [n for n in self._shapes.slice_lengths if n <= left and self.seconds(n) <= seconds]
        if fitting and not self.seconds(fitting[-1]):
            fitting = [n for n in fitting if n <= max(left // 2, fitting[0])]
        return fitting[-1] if fitting else 0

    def advance(self, layers: int) -> SliceStep:
        """Plan the next slice of so many layers."""
        first, past = self._done, self._done + layers
        work = self._slowest(layers)
        seconds, sizes = self._times.seconds(slice_work(layers, *work)), self._sizes
        stages = tuple(StepPlan(tuple(held.chunk for held in stage)) for stage in self._stages)
        states = tuple(tuple(held.state for held in stage) for stage in self._stages)
        slacks = tuple(tuple(held.slack for held in stage) for stage in self._stages)
        worked = tuple(held.work * layers / self._shapes.layers for held in self._stages[0])
        leaving: tuple[RequestState, ...] = ()
        self._done = past
        if past == self._shapes.layers:
            leaving = tuple(held.state for held in self._stages[-1])
            self._stages.appendleft([])
            self._done = 0
        return SliceStep(
            Slice(stages, first, past), states, slacks, leaving, worked, slice_work(layers, *work), seconds, sizes
        )

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        """Padded rows of the shape that holds every stage's chunks."""
        own = max((held.chunk.length for stage in self._stages for held in stage if not held.chunk.shared), default=0)
        shared = max((held.chunk.length for stage in self._stages for held in stage if held.chunk.shared), default=0)
        return (
            0,
            smallest_size(self._shapes.own.slices, own) if own else 0,
            0,
            smallest_size(self._shapes.shared.slices, shared) if shared else 0,
        )

    def _slowest(self, layers: int) -> tuple[int, float, int]:
        """Rows, attention and context of the stage that takes longest."""
        rows = sum(self._sizes)
        works = [(rows, *_of_groups(stage)) for stage in self._stages if stage]
        if len(works) == 1:
            return works[0]
        return max(works, key=lambda work: self._seconds(layers, work), default=(0, 0.0, 0))

    def _work(self, start: int, length: int) -> tuple[int, float, int]:
        """Rows, attention and context of a lone chunk."""
        per_group = self._shapes.per_group
        rows = smallest_size(self._shapes.buckets(start).slices, length)
        return rows, chunk_attention(start, length, per_group), chunk_read(start + length, per_group)

    def _seconds(self, layers: int, work: tuple[int, float, int]) -> float:
        return self._times.seconds(slice_work(layers, *work))


def _of_groups(stage: Sequence[_Held]) -> tuple[float, int]:
    """Attention and context of a stage on its fullest group; shared chunks count on every group."""
    own = [held for held in stage if not held.chunk.shared]
    shared = [held for held in stage if held.chunk.shared]
    return (
        max((held.attention for held in own), default=0.0) + sum(held.attention for held in shared),
        max((held.context for held in own), default=0) + sum(held.context for held in shared),
    )
