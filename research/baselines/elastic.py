"""Elastic sequence parallelism without preemption, after LoongServe (arXiv 2404.09526); models which requests wait.

Instances have one tensor-parallel size. A prefill computes whole prompts from the head of the queue, on as many
instances as help, and holds them to its end, without chunks or interruptions. Its KV then lies on as few instances as
hold it. Decodes use all instances without a prefill, and wait if there are none.

The model is simpler than the system, mostly in its favour: moving KV is free, and decodes use every free instance. A
greedy choice (smallest degree within 10 % of the fastest, at most `most`) replaces dynamic programming.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from medha_jax.config import SchedulerConfig
from medha_jax.simulate.cost import CostModel
from medha_jax.simulate.executor import Totals
from medha_jax.simulate.held_chunks import SimulationError
from medha_jax.simulate.simulated_records import record_of
from medha_jax.simulate.simulation import Outcome
from medha_jax.simulate.times import GroupWork
from medha_jax.specs.buckets import Bucket, Segment
from medha_jax.workload import WorkloadRequest
from research.baselines.decoding import DecodePool, Decoding
from research.baselines.ring import ring_prefill

NEARLY = 1.1  # times the least seconds of a prefill that fewer instances may take
BATCH_TOKENS = 8192  # of short prompts computed together, per instance
FOREVER = float("inf")


@dataclass(frozen=True)
class Instances:
    """Equal servers that can work together.

    Args:
        cost: of one instance, a mesh with only `tp`.
        most: instances that one prefill may use.
        tokens: KV that one instance holds.
        slots: most requests that decode together.
    """

    cost: CostModel
    count: int
    most: int
    tokens: int
    slots: int = 1024


@dataclass(order=True)
class _Prefill:
    ends: float
    instances: int
    requests: list[int] = field(compare=False)


def simulate_elastic(
    instances: Instances,
    arrivals: Sequence[WorkloadRequest],
    isolated: Callable[[int], float],
    until: float | None = None,
) -> Outcome:
    """Serve requests as they arrive, until all are done, or until the second `until`.

    `isolated` gives the seconds of a prompt alone, from which deadlines follow.

    Raises:
        SimulationError: a request needs more KV than all instances hold.
    """
    return _Elastic(instances, arrivals).run(isolated, FOREVER if until is None else until)


class _Elastic:
    """One simulation; owns queue, prefills, decodes and the times of each request."""

    def __init__(self, instances: Instances, arrivals: Sequence[WorkloadRequest]) -> None:
        self._of, self._arrivals = instances, arrivals
        self._queue: deque[int] = deque()
        self._prefills: list[_Prefill] = []
        self._free = instances.count
        self._decodes = DecodePool(self._round, instances.count * instances.tokens, instances.slots)
        self._first: list[float | None] = [None] * len(arrivals)
        self._finished: list[float | None] = [None] * len(arrivals)
        self._totals = Totals()

    def run(self, isolated: Callable[[int], float], until: float) -> Outcome:
        came, now, arrivals = 0, 0.0, self._arrivals
        while now < until:
            moments = [arrivals[came].at] if came < len(arrivals) else []
            moments += [self._prefills[0].ends] if self._prefills else []
            now = min([*moments, until]) if moments else until
            self._decode(now)
            if not moments and not self._decodes.running:
                now = min(until, self._decodes.now)
                break
            while came < len(arrivals) and arrivals[came].at <= now:
                self._queue.append(came)
                came += 1
            while self._prefills and self._prefills[0].ends <= now:
                self._end(heapq.heappop(self._prefills))
            self._begin(now)
        seconds = [isolated(arrival.length) for arrival in arrivals[:came]]
        deadlines = list(map(SchedulerConfig().default_deadline_s, seconds))
        rows = zip(arrivals[:came], deadlines, seconds, self._first, self._finished, strict=False)
        records = tuple(record_of(index, *row, now) for index, row in enumerate(rows))
        return Outcome(records, now, self._totals)

    def _decode(self, until: float) -> None:
        """Run decodes up to a moment, if an instance has no prefill."""
        if not self._free:
            self._decodes.now = max(self._decodes.now, until)
            return
        for number, at in self._decodes.run(until):
            self._finished[number] = at

    def _end(self, prefill: _Prefill) -> None:
        """Give the prompts of a prefill their first tokens."""
        self._free += prefill.instances
        for number in prefill.requests:
            arrival = self._arrivals[number]
            self._first[number] = prefill.ends
            if arrival.output_tokens == 1:
                self._finished[number] = prefill.ends
            else:
                self._decodes.add(Decoding(number, arrival.length + 1, arrival.output_tokens - 1))

    def _begin(self, now: float) -> None:
        """Begin prefills from the head of the queue while free instances hold their KV."""
        while self._queue:
            kept = self._needed(self._decodes.held)
            able = min(self._free - kept, self._of.most)
            head = self._arrivals[self._queue[0]]
            least = max(1, self._needed(head.length + head.output_tokens))
            if least > self._of.count:
                raise SimulationError(f"{head.length + head.output_tokens} tokens fit no {self._of.count} instances")
            least = min(least, self._of.most)
            if able < least:
                return
            batch = self._batch(able)
            prompts = [self._arrivals[number].length for number in batch]
            seconds = {n: ring_prefill(self._of.cost, prompts, n) for n in range(least, able + 1)}
            degree = min(degree for degree, taken in seconds.items() if taken <= NEARLY * min(seconds.values()))
            self._free -= degree
            heapq.heappush(self._prefills, _Prefill(now + seconds[degree], degree, batch))
            self._totals.ticks += 1
            self._totals.seconds += seconds[degree]
            self._totals.tokens += sum(prompts)
            self._totals.attention += sum(prompt * (prompt + 1) / 2 for prompt in prompts)

    def _batch(self, instances: int) -> list[int]:
        """Requests from the head of the queue to compute together: one long one, or several short ones."""
        batch, tokens = [self._queue.popleft()], 0
        tokens = self._arrivals[batch[0]].length
        while self._queue and tokens + self._arrivals[self._queue[0]].length <= BATCH_TOKENS * instances:
            batch.append(self._queue.popleft())
            tokens += self._arrivals[batch[-1]].length
        return batch

    def _needed(self, tokens: int) -> int:
        """Instances needed for `tokens` tokens of KV."""
        return -(-tokens // self._of.tokens)

    def _round(self, count: int, context: float) -> float:
        """Seconds of one token for every decoding request, on the instances without a prefill."""
        share = max(1, self._free)
        work = GroupWork(context=context / share, rows=-(-count // share))
        return self._of.cost.group_seconds(Bucket(Segment(-(-count // share))), work)
