"""A device without a model: it keeps token ids as KV, stage by stage, and samples a hash of all that a row sees.

What a request generates depends on every token that its pages hold and on nothing else, so a page that is owned twice,
given back too early, adopted wrongly or not computed again changes tokens or fails a check here.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence

from medha_jax.config import Buckets
from medha_jax.plan import Chunk, PageCopy, Slice, StepPlan
from medha_jax.specs.tick_shapes import TickShapes

VOCAB = 1000


def next_token(tokens: Sequence[int]) -> int:
    """What this model says after some tokens."""
    digest = hashlib.blake2b(repr(list(tokens)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % VOCAB


def continuation(prompt: Sequence[int], count: int) -> list[int]:
    """What a request that is alone generates."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class Device:
    """Runs plans as the tick does: one stage a tick, page tables and last tokens by slot and group."""

    def __init__(self, shapes: TickShapes) -> None:
        self.shapes = shapes
        self.ticks = 0
        self._flight: deque[StepPlan] = deque([StepPlan(())] * (shapes.stages - 1))
        self._kv: list[dict[tuple[int, int, int], int | None]] = [{} for _ in range(shapes.stages)]
        self._host: dict[tuple[int, int, int], dict[int, int | None]] = {}
        self._tables: dict[tuple[int, int], dict[int, int]] = {}
        self._last: dict[tuple[int, int], int] = {}
        self._next: dict[int, int] = {}
        self.slices = 0
        self.clear_lane()

    def clear_lane(self) -> None:
        """Forget what the stages hold between slices."""
        self._held: list[list[Chunk]] = [[] for _ in range(self.shapes.stages)]
        self._layers = 0

    def submit_slice(self, work: Slice) -> list[Chunk]:
        """Run some layers of the chunks that the stages hold; returns the chunks that leave the last stage."""
        self.slices += 1
        layers = self.shapes.layers
        assert work.past - work.first in self.shapes.slice_lengths and work.past <= layers
        assert len(work.stages) == self.shapes.stages and any(plan.chunks for plan in work.stages)
        if work.first == 0 and self._layers:
            self.clear_lane()  # every chunk of that round was dropped
        assert work.first == self._layers, "the slices of a round follow each other"
        if work.first == 0:
            assert not self._held[0]
            self._held[0] = list(work.stages[0].chunks)
            for chunk in work.stages[0].chunks:
                assert not any(chunk.slot == other.slot for plan in self._flight for other in plan.chunks)
                self._enter(chunk)
        for number, plan in enumerate(work.stages):
            assert set(plan.chunks) <= set(self._held[number]), "a stage keeps its chunks, but for dropped ones"
            self._held[number] = list(plan.chunks)
            kinds = [None if chunk.shared else chunk.groups[0] for chunk in plan.chunks]
            assert len(set(kinds)) == len(kinds)
            for chunk in plan.chunks:
                sizes = (self.shapes.shared if chunk.shared else self.shapes.own).slices
                assert 2 <= chunk.length <= sizes[-1] and not chunk.last
        self._layers = work.past
        if work.past < layers:
            return []
        for number, held in enumerate(self._held):
            for chunk in held:
                self._compute(number, chunk)
        leaving = self._held.pop()
        self._held.insert(0, [])
        self._layers = 0
        return leaving

    @property
    def busy(self) -> bool:
        """Whether a chunk is in the pipeline."""
        return any(plan.chunks for plan in self._flight)

    def admit(self, slot: int, cached: int = 0) -> None:
        """A slot gets a new request, whose first chunk starts after its cached tokens."""
        self._held = [[chunk for chunk in held if chunk.slot != slot] for held in self._held]
        for group in range(self.shapes.groups):
            self._tables[group, slot] = {}
            self._last[group, slot] = -1
        self._next[slot] = cached

    def adopt(self, slot: int, group: int, pages: Sequence[int]) -> None:
        self._tables[group, slot] = dict(enumerate(pages))

    def copy_pages(self, copies: Sequence[PageCopy]) -> None:
        """Copy pages to and from host memory, on every stage."""
        for group, page, place, to_host in copies:
            for stage, kv in enumerate(self._kv):
                host = self._host.setdefault((stage, group, place), {})
                if to_host:
                    host.clear()
                for at in range(self.shapes.page_size):
                    if to_host:
                        host[at] = kv.get((group, page, at))
                    else:
                        kv[group, page, at] = host[at]

    def submit(self, plan: StepPlan) -> tuple[StepPlan, list[int]]:
        """Run one tick; returns the plan that leaves and a token for each of its chunks."""
        self.ticks += 1
        check_fits(plan, self.shapes)
        for chunk in plan.chunks:
            assert not any(chunk.slot == held.slot for stage in self._held for held in stage), "one lane at a time"
            self._enter(chunk)
        stages = [plan, *self._flight]
        self._flight.appendleft(plan)
        leaving = self._flight.pop()
        results = []
        for number, staged in reversed(list(enumerate(stages))):
            for chunk in staged.chunks:
                self._compute(number, chunk)
        for chunk in leaving.chunks:
            token = next_token([self._read(-1, chunk, at) for at in range(chunk.end)])
            results.append(token)
            if chunk.last:
                for group in range(self.shapes.groups) if chunk.shared else chunk.groups:
                    self._last[group, chunk.slot] = token
        return leaving, results

    def _enter(self, chunk: Chunk) -> None:
        assert chunk.start == self._next[chunk.slot], "the chunks of a request follow each other"
        self._next[chunk.slot] = chunk.end
        assert chunk.tokens is None or len(chunk.tokens) == chunk.length
        part = chunk.start // self.shapes.per_group
        assert part == (chunk.end - 1) // self.shapes.per_group, "a chunk lies on one group"
        assert len(chunk.groups) == part + 1
        table = self._tables[chunk.groups[-1], chunk.slot]
        for at, page in enumerate(chunk.pages):
            assert table.get(chunk.first_page + at) is None
            table[chunk.first_page + at] = page

    def _compute(self, stage: int, chunk: Chunk) -> None:
        """Write the chunk's KV on one stage."""
        tokens = chunk.tokens
        if tokens is None:
            seeing = range(self.shapes.groups) if chunk.shared else chunk.groups
            last = {self._last[group, chunk.slot] for group in seeing}
            assert len(last) == 1, "every group that computes a decode has the same token"
            tokens = tuple(last)
        for at, token in enumerate(tokens, chunk.start):
            self._kv[stage][self._place(chunk, at)] = token

    def _read(self, stage: int, chunk: Chunk, position: int) -> int:
        return self._kv[stage][self._place(chunk, position)]

    def _place(self, chunk: Chunk, position: int) -> tuple[int, int, int]:
        """Group, page and offset of a position, by the page tables as they are now."""
        part, inside = divmod(position, self.shapes.per_group)
        group = chunk.groups[part]
        return group, self._tables[group, chunk.slot][inside // self.shapes.page_size], inside % self.shapes.page_size


def check_fits(plan: StepPlan, shapes: TickShapes) -> None:
    """A plan is within the largest shape, and a request has one chunk in it."""
    assert len({chunk.slot for chunk in plan.chunks}) == len(plan.chunks)
    kinds: dict[int | None, list[Chunk]] = {}
    for chunk in plan.chunks:
        kinds.setdefault(None if chunk.shared else chunk.groups[0], []).append(chunk)
    for kind, chunks in kinds.items():
        buckets: Buckets = shapes.shared if kind is None else shapes.own
        longer = [chunk.length for chunk in chunks if chunk.length > 1]
        assert len(chunks) - len(longer) <= buckets.decode[-1]
        assert len(longer) <= buckets.chunks
        assert sum(longer) <= buckets.prefill[-1]
