"""The budget of a tick: rows of every KV group, shared rows, and predicted seconds against a target."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from medha_jax.config import Buckets, SchedulerConfig
from medha_jax.scheduler.chunking import candidates, largest_within, worthwhile
from medha_jax.scheduler.time_model import TickWork, TimeModel
from medha_jax.specs.buckets import padded_sizes
from medha_jax.specs.chunk_work import chunk_attention, chunk_read
from medha_jax.specs.tick_shapes import TickShapes

IDLE_PATIENCE = 2.0


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
    """The load of one plan: padded rows as in `Planned.sizes`, the rest as in `TickWork`."""

    sizes: tuple[int, int, int, int] = (0, 0, 0, 0)
    attention: float = 0.0
    context: float = 0.0
    rows: int = 0


class TickTarget(NamedTuple):
    """How long a tick may take.

    Args:
        seconds: what the tick aims at.
        at_most: seconds allowed with the smallest chunk of its first prompt; at least `seconds`.
        patience: factor on the time allowed with a longer chunk of its first prompt that is `worthwhile`. The time is
            `seconds`, or that of the smallest chunk if it is longer.
    """

    seconds: float
    at_most: float
    patience: float = 1.0

    @property
    def strict(self) -> TickTarget:
        """The target after the first prompt of a tick."""
        return TickTarget(self.seconds, self.seconds)

    def within(self, seconds: float) -> TickTarget:
        """The same, but at most `seconds` long."""
        return TickTarget(min(self.seconds, seconds), self.at_most, self.patience)

    def share(self, slack: float, most: float) -> TickTarget:
        """The target of a long prompt with relative slack: `seconds * (1 - min(max(slack, 0), most))`.

        In Medha's Algorithm 2 short prompts yield as well, which contradicts the paper's own example.
        """
        return TickTarget(self.seconds * (1 - min(max(slack, 0.0), most)), self.at_most)


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
        more = rows.with_chunk(start, length, self._shapes.per_group)
        if rows is self._shared:
            load = self._load(self._own, more)
        else:
            load = self._load([more if own is rows else own for own in self._own], self._shared)
        seconds = self._slowest(load)[1]
        return self._alone(load) if seconds <= before else seconds

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
            return TickLoad((*sizes, 0, 0), attention, context, real)
        return TickLoad(
            (*sizes, *padded_sizes(shared.buckets, shared.decodes, shared.tokens)),
            attention + shared.attention,
            context + shared.context,
            real + shared.decodes + shared.chunks,
        )


class TickTargets:
    """Owns the TPOT targets of the decodes in flight, and the time that earlier ticks have saved.

    A token passes every stage, one tick each, and all stages wait for the slowest plan. So a tick aims at the tightest
    TPOT target of the decodes in any stage, divided by the stages. A prompt whose last chunk is in flight counts as a
    decode, because its next token shares ticks with the new plan.

    If no prompt chunk fits beside the decodes, the smallest one runs as soon as earlier ticks have saved its time. So
    the mean time per token is kept. The saved time is at most that of `ageing_ticks` ticks. The smallest chunk runs at
    once if there are no decodes, or if they already exceed the target.

    Without decodes no request waits for a token. If a smaller chunk would hardly shorten a tick, it may take
    IDLE_PATIENCE times its limit, or times the smallest chunk's time if that is longer. Without chunk preemption there
    is no limit, and chunks are as large as possible.
    """

    def __init__(self, config: SchedulerConfig, stages: int) -> None:
        self._idle, self._most_saved = config.idle_tick_s, config.ageing_ticks
        self._unlimited = not config.chunk_preemption
        self._stages = stages
        self._promised: deque[float] = deque(maxlen=stages - 1)
        self._saved = 0.0

    def target(self, tpot: float, seconds: float) -> TickTarget:
        """The target of a tick whose decodes take `seconds` alone and have `tpot` as their tightest TPOT target.

        `tpot` is in seconds, and infinite without decodes.
        """
        if self._unlimited:
            return TickTarget(math.inf, math.inf)
        promised = self._tightest(tpot)
        if promised == math.inf:
            return TickTarget(self._idle, math.inf, IDLE_PATIENCE)
        return TickTarget(promised, math.inf if seconds > promised else promised + self._saved)

    def planned(self, tpot: float, coming: float, seconds: float) -> None:
        """Note a tick planned to take `seconds`; `tpot` as for `target`, `coming` with the prompts that end in it."""
        promised = self._tightest(tpot)
        if promised < math.inf:
            self._saved = min(max(self._saved + promised - seconds, 0.0), self._most_saved * promised)
        else:
            self._saved = 0.0
        self._promised.append(coming)

    def _tightest(self, tpot: float) -> float:
        """Seconds of a tick that keep every TPOT target; infinite without decodes."""
        return min([tpot, *self._promised]) / self._stages
