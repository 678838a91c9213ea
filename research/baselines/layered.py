"""Layered prefill (arXiv 2510.08055): every waiting prompt runs one group of layers in each tick, beside all decodes.

The rule of the paper on a mesh of ours: the layers of a stage are divided into groups. A tick has all layers for the
decodes that are due, and one layer group of each stage for every prompt. The prompts' rows ride along in these layers,
so weights are read once. A prompt is cut by tokens only where it is longer than the largest shape; its chunks follow
each other through the stages. There are no targets and no order: whoever has pages runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from medha_jax.config import SchedulerConfig
from medha_jax.scheduler.time_model import TickWork
from medha_jax.simulate.deployments import Deployment
from medha_jax.simulate.executor import Totals
from medha_jax.simulate.simulated_records import record_of
from medha_jax.simulate.simulation import Outcome
from medha_jax.specs.buckets import smallest_size
from medha_jax.specs.chunk_work import chunk_attention
from medha_jax.specs.sizes import UNBOUNDED
from medha_jax.workload import WorkloadRequest

FOREVER = float("inf")


@dataclass(slots=True)
class _Chunk:
    """A chunk in a stage: `end` of its tokens, padded rows, attention (tokens²), layer groups that it has passed."""

    end: int
    rows: int
    attention: float
    passed: int = 0


@dataclass(slots=True)
class _Prompt:
    """A prompt with pages: tokens that have entered, and its chunk in each stage."""

    number: int
    tokens: int
    stages: list[_Chunk | None]
    entered: int = 0


@dataclass(slots=True)
class _Decode:
    """A request that decodes: its context, tokens still to come, and the tick that brings the next one."""

    number: int
    context: int
    left: int
    due: int


def simulate_layered(
    deployment: Deployment,
    arrivals: Sequence[WorkloadRequest],
    groups: int,
    isolated: Callable[[int], float],
    until: float = FOREVER,
) -> Outcome:
    """Serve requests as they arrive, until all are done, or until the second `until`.

    Args:
        deployment: one KV group. A layer group takes its share of what rows, attention and reading take in a tick.
        groups: layer groups of a stage.
        isolated: seconds of a prompt alone, from which deadlines follow.
    """
    return _Layered(deployment, arrivals, groups).run(isolated, until)


@dataclass
class _Layered:
    """One simulation; owns queue, prompts, decodes and the times of each request."""

    of: Deployment
    arrivals: Sequence[WorkloadRequest]
    groups: int
    queue: deque[int] = field(default_factory=deque)
    prompts: list[_Prompt] = field(default_factory=list)
    decodes: list[_Decode] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)

    def run(self, isolated: Callable[[int], float], until: float) -> Outcome:
        arrivals, now, came = self.arrivals, 0.0, 0
        self.first: list[float | None] = [None] * len(arrivals)
        self.finished: list[float | None] = [None] * len(arrivals)
        self.free = self.of.config.pool_tokens or self.of.context
        while now < until:
            while came < len(arrivals) and arrivals[came].at <= now:
                self.queue.append(came)
                came += 1
            self._admit()
            if not self.prompts and not self.decodes:
                if came == len(arrivals):
                    break
                now = min(until, arrivals[came].at)
                continue
            seconds = self._tick()
            now += seconds
            self._end_tick(now)
            self.totals.seconds += seconds
            self.totals.longest = max(self.totals.longest, seconds)
        alone = [isolated(arrival.length) for arrival in arrivals[:came]]
        deadlines = list(map(SchedulerConfig().default_deadline_s, alone))
        rows = zip(arrivals[:came], deadlines, alone, self.first, self.finished, strict=False)
        return Outcome(tuple(record_of(index, *row, now) for index, row in enumerate(rows)), now, self.totals)

    def _needs(self, number: int) -> int:
        return self.arrivals[number].length + self.arrivals[number].output_tokens

    def _admit(self) -> None:
        """Give pages and a slot to the head of the queue while it fits."""
        while self.queue and len(self.prompts) + len(self.decodes) < self.of.config.slots:
            if self._needs(self.queue[0]) > self.free:
                return
            number = self.queue.popleft()
            self.free -= self._needs(number)
            self.prompts.append(_Prompt(number, self.arrivals[number].length, [None] * self.of.config.mesh.spp))

    def _tick(self) -> float:
        """Seconds of a tick: those of the slowest stage."""
        buckets, ticks = self.of.config.mesh.buckets, self.totals.ticks
        due: list[list[_Decode]] = [[] for _ in range(self.of.config.mesh.spp)]
        for one in self.decodes:
            due[one.due - ticks].append(one)  # a token leaves the last stage in its tick `due`
        for prompt in self.prompts:
            if prompt.stages[0] is None and prompt.entered < prompt.tokens:
                length = min(buckets.prefill[-1], prompt.tokens - prompt.entered)
                rows = smallest_size(buckets.prefill, length)
                squares = chunk_attention(prompt.entered, length, UNBOUNDED)
                prompt.entered += length
                prompt.stages[0] = _Chunk(prompt.entered, rows, squares)
                self.totals.tokens += length
        rows = smallest_size(buckets.decode, min(max(map(len, due)), buckets.decode[-1]))
        # all stages run the largest rows of any stage
        prompt_rows = max(sum(one.rows for one in stage if one) for stage in self._stages())
        seconds = 0.0
        for stage, decodes in zip(self._stages(), due, strict=True):
            chunks = [one for one in stage if one]
            work = TickWork(
                rows + round(prompt_rows / self.groups),
                sum(one.attention for one in chunks) / self.groups,
                sum(one.context for one in decodes) + sum(one.end for one in chunks) / self.groups,
                len(decodes) + len(chunks),
            )
            seconds = max(seconds, self.of.model.seconds(work))
        return seconds

    def _stages(self) -> list[list[_Chunk | None]]:
        """The chunks of every prompt, stage by stage."""
        return [[prompt.stages[stage] for prompt in self.prompts] for stage in range(self.of.config.mesh.spp)]

    def _end_tick(self, now: float) -> None:
        """Move chunks on, and deliver the tokens that leave."""
        stages, tick = self.of.config.mesh.spp, self.totals.ticks
        self.totals.ticks += 1
        for one in [one for one in self.decodes if one.due == tick]:
            one.context, one.left, one.due = one.context + 1, one.left - 1, one.due + stages
            if not one.left:
                self.decodes.remove(one)
                self._done(one.number, now)
        for prompt in list(self.prompts):
            for chunk in prompt.stages:
                if chunk is not None:
                    chunk.passed += 1
            for stage in reversed(range(stages)):
                chunk = prompt.stages[stage]
                if chunk is None or chunk.passed < self.groups:
                    continue
                prompt.stages[stage] = None
                if stage + 1 < stages:
                    chunk.passed = 0
                    prompt.stages[stage + 1] = chunk
                elif chunk.end == prompt.tokens:
                    self.prompts.remove(prompt)
                    self._answer(prompt, now)

    def _answer(self, prompt: _Prompt, now: float) -> None:
        """The first token of a request."""
        self.first[prompt.number] = now
        left = self.arrivals[prompt.number].output_tokens - 1
        if left:
            due = self.totals.ticks + self.of.config.mesh.spp - 1
            self.decodes.append(_Decode(prompt.number, prompt.tokens + 1, left, due))
        else:
            self._done(prompt.number, now)

    def _done(self, number: int, now: float) -> None:
        self.finished[number] = now
        self.free += self._needs(number)
