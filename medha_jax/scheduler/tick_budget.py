"""The budget of a tick: rows of every KV group, shared rows, and predicted seconds against a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from medha_jax.config import Buckets
from medha_jax.scheduler.chunking import candidates, largest_within, worthwhile
from medha_jax.scheduler.tick_targets import TickTarget
from medha_jax.scheduler.time_model import TickWork, TimeModel
from medha_jax.specs.buckets import padded_sizes
from medha_jax.specs.chunk_work import chunk_attention, chunk_read
from medha_jax.specs.tick_shapes import TickShapes


@dataclass(slots=True)
class _RowLoad:
    """The load of one kind of rows of a tick so far, in the units of `TickWork`."""

    buckets: Buckets
    decodes: int = 0
    tokens: int = 0
    chunks: int = 0
    attention: float = 0.0
    context: float = 0.0
    long: bool = False

    @property
    def used(self) -> bool:
        """Whether any row is taken."""
        return bool(self.decodes or self.chunks)

    def add(self, start: int, length: int, per_group: int) -> None:
        """Add a prompt chunk; one token runs as a decode row."""
        self.context += chunk_read(start + length, per_group)
        if length == 1:
            self.decodes += 1
            return
        self.tokens += length
        self.chunks += 1
        self.attention += chunk_attention(start, length, per_group)

    def with_chunk(self, start: int, length: int, per_group: int) -> _RowLoad:
        """A copy with one more prompt chunk."""
        more = _RowLoad(self.buckets, self.decodes, self.tokens, self.chunks, self.attention, self.context)
        more.add(start, length, per_group)
        return more


class TickLoad(NamedTuple):
    """The load of one plan: padded rows as in `Planned.sizes`, and the same unpadded; the rest as in `TickWork`."""

    sizes: tuple[int, int, int, int] = (0, 0, 0, 0)
    attention: float = 0.0
    context: float = 0.0
    rows: int = 0
    needs: tuple[int, int, int, int] = (0, 0, 0, 0)

    def padded(self, shapes: TickShapes) -> TickLoad:
        """The same plan, padded to the smallest of other shapes."""
        if not self.rows:
            return self
        decodes, tokens, *shared = self.needs
        own = padded_sizes(shapes.own, decodes, tokens)
        return self._replace(sizes=(*own, *(padded_sizes(shapes.shared, *shared) if any(shared) else (0, 0))))


class TickBudget:
    """What is left of a tick while its plan is made.

    A request on one group has own rows there. A request spread over groups has shared rows, which every group
    computes. Groups run in parallel, so a plan's load is that of the fullest group plus the shared rows.

    `flight` holds the plans in the other stages while this one is in the first.
    """

    def __init__(self, shapes: TickShapes, model: TimeModel, flight: Sequence[TickLoad] = ()) -> None:
        self._shapes, self._model = shapes, model
        self._flight = [load for load in flight if load.rows]
        self._sizes = tuple(max(load.sizes[n] for load in self._flight) for n in range(4)) if self._flight else ()
        self._own = [_RowLoad(shapes.own) for _ in range(shapes.groups)]
        self._shared = _RowLoad(shapes.shared)
        self._kinds = [*self._own, self._shared] if shapes.groups > 1 else self._own
        self._taken: TickLoad | None = None

    @property
    def load(self) -> TickLoad:
        """The load that was taken so far."""
        if self._taken is None:
            self._taken = self._load(self._own, self._shared)
        return self._taken

    @property
    def tick(self) -> tuple[TickWork, float]:
        """Work of the slowest stage, and its predicted seconds, which are the tick's."""
        return self._slowest(self.load)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of the bucket: own decodes, own prompt tokens, shared decodes, shared prompt tokens."""
        return tuple(map(max, self.load.sizes, self._sizes)) if self._flight else self.load.sizes

    @property
    def seconds(self) -> float:
        """Predicted seconds of the tick if all other stages were empty."""
        return self._alone(self.load)

    @property
    def full(self) -> bool:
        """Whether no further prompt chunk of several tokens fits on any group."""
        return all(
            rows.chunks == rows.buckets.chunks or rows.tokens >= rows.buckets.prefill[-1] for rows in self._kinds
        )

    def more_fits(self, limit: float) -> bool:
        """Whether any further prompt chunk of several tokens can fit a tick of `limit` seconds.

        It tests the cheapest chunk, at the beginning of a prompt. Every other one takes at least as long.
        """
        before = self._seconds_before()
        return any(self._has_place(rows, 2) and self._seconds_with(rows, 0, 2, before) <= limit for rows in self._kinds)

    def decode(self, owners: Sequence[int], position: int) -> bool:
        """Take a decode row for one token at `position`; returns False if none is left."""
        rows = self._rows(owners)
        if rows.decodes == rows.buckets.decode[-1]:
            return False
        rows.decodes += 1
        rows.context += chunk_read(position + 1, self._shapes.per_group)
        self._taken = None
        return True

    def crowded(self, owners: Sequence[int]) -> bool:
        """Whether a group that would compute a chunk of `owners` already has a long prompt's chunk in this tick."""
        if len(owners) > 1:
            return self._shared.long or any(rows.long for rows in self._own)
        return self._shared.long or self._own[owners[0]].long

    def largest(self, owners: Sequence[int], start: int, most: int, target: TickTarget) -> int:
        """The longest chunk of a prompt, in tokens, that keeps the tick to its target; 0 if there is none.

        `owners` are the groups that hold the request up to position `start`, where the chunk begins. `most` is the
        number of tokens to the end of the prompt or of the group's part.
        """
        rows = self._rows(owners)
        lengths = candidates(rows.buckets, rows.tokens, most)
        if not lengths or not self._has_place(rows, lengths[0]):
            return 0
        before = self._seconds_before()

        def seconds(length: int) -> float:
            return self._seconds_with(rows, start, length, before)

        limit = target.seconds
        length = largest_within(lengths, seconds, limit)
        if not length:
            limit = seconds(lengths[0])
            length = lengths[0] if limit <= target.at_most else 0
        if length and target.patience > 1:
            return worthwhile(lengths, seconds, length, target.patience * limit)
        return length

    def stated(self, owners: Sequence[int], start: int, length: int, target: TickTarget) -> int:
        """`length` if a chunk of exactly `length` tokens fits, else 0; other arguments as in `largest`."""
        rows = self._rows(owners)
        if not self._has_place(rows, length):
            return 0
        return length if self._seconds_with(rows, start, length, self._seconds_before()) <= target.at_most else 0

    def added(self, owners: Sequence[int], start: int, length: int) -> float:
        """Seconds that a chunk adds to this plan's tick, if all other stages are empty."""
        load = self._load_with(self._rows(owners), start, length)
        return self._alone(load) - (self._alone(self.load) if self.load.rows else 0.0)

    def single_rows(self, shapes: TickShapes, besides: TickBudget | None = None) -> TickBudget:
        """A budget of these shapes with this one's rows of one token and the KV that all read.

        Those of `besides` are left out.
        """
        other = TickBudget(shapes, self._model)
        for mine, theirs in zip((*self._own, self._shared), (*other._own, other._shared), strict=True):
            theirs.decodes, theirs.context = mine.decodes, mine.context
        if besides is not None:
            for less, theirs in zip((*besides._own, besides._shared), (*other._own, other._shared), strict=True):
                theirs.decodes, theirs.context = theirs.decodes - less.decodes, theirs.context - less.context
        return other

    def prefill(self, owners: Sequence[int], start: int, length: int, long: bool) -> None:
        """Take a prompt chunk; `long` if its prompt is long."""
        rows = self._rows(owners)
        rows.add(start, length, self._shapes.per_group)
        rows.long = rows.long or long
        self._taken = None

    def _rows(self, owners: Sequence[int]) -> _RowLoad:
        return self._own[owners[0]] if len(owners) == 1 else self._shared

    def _has_place(self, rows: _RowLoad, length: int) -> bool:
        if length == 1:
            return rows.decodes < rows.buckets.decode[-1]
        return rows.chunks < rows.buckets.chunks and rows.tokens + length <= rows.buckets.prefill[-1]

    def _seconds_before(self) -> float:
        """Seconds of the tick before another chunk is added; 0 if the other stages are empty."""
        return self._slowest(self.load)[1] if self._flight else 0.0

    def _seconds_with(self, rows: _RowLoad, start: int, length: int, before: float) -> float:
        """Seconds of the tick with one more prompt chunk.

        If that is no longer than `before`, the chunk costs time only in later ticks: those of its plan alone count.
        """
        load = self._load_with(rows, start, length)
        seconds = self._slowest(load)[1]
        return self._alone(load) if seconds <= before else seconds

    def _load_with(self, rows: _RowLoad, start: int, length: int) -> TickLoad:
        """The load with one more prompt chunk among `rows`."""
        more = rows.with_chunk(start, length, self._shapes.per_group)
        if rows is self._shared:
            return self._load(self._own, more)
        return self._load([more if own is rows else own for own in self._own], self._shared)

    def _alone(self, load: TickLoad) -> float:
        return self._model.seconds(TickWork(sum(load.sizes), load.attention, load.context, load.rows))

    def _slowest(self, load: TickLoad) -> tuple[TickWork, float]:
        """Work and seconds of the slowest stage. All stages run in the smallest bucket that holds every plan."""
        sizes = map(max, load.sizes, self._sizes) if self._flight else load.sizes
        tokens = sum(sizes)
        work = TickWork(tokens, load.attention, load.context, load.rows)
        longest = self._model.seconds(work)
        for other in self._flight:
            theirs = TickWork(tokens, other.attention, other.context, other.rows)
            seconds = self._model.seconds(theirs)
            if seconds > longest:
                work, longest = theirs, seconds
        return work, longest

    def _load(self, own: Sequence[_RowLoad], shared: _RowLoad) -> TickLoad:
        if len(own) == 1:
            (only,) = own
            decodes, tokens, attention = only.decodes, only.tokens, only.attention
            context, real = only.context, only.decodes + only.chunks
        else:
            decodes, tokens = max(rows.decodes for rows in own), max(rows.tokens for rows in own)
            attention, context = max(rows.attention for rows in own), max(rows.context for rows in own)
            real = max(rows.decodes + rows.chunks for rows in own)
        sizes = padded_sizes(own[0].buckets, decodes, tokens)
        if not shared.used:
            return TickLoad((*sizes, 0, 0), attention, context, real, (decodes, tokens, 0, 0))
        return TickLoad(
            (*sizes, *padded_sizes(shared.buckets, shared.decodes, shared.tokens)),
            attention + shared.attention,
            context + shared.context,
            real + shared.decodes + shared.chunks,
            (decodes, tokens, shared.decodes, shared.tokens),
        )
