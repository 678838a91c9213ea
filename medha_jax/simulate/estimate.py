"""What a layout would do for a longest request and for traffic, in closed form, so that hundreds can be compared.

Traffic is treated as a fluid. Ticks last as long as the TPOT target allows, `T = tpot / spp`; the empty shape takes
`idle` of that. A request adds the seconds of its prompt chunks beyond `idle`, and for each output token a row and the
KV that it reads. Requests of different groups run in parallel. A request spread over groups runs on all of them.

    capacity = (1 - idle / T) / E[seconds of a request]

At a share `u` of the capacity a prompt needs `alone / (1 - u)` to its first token, as under processor sharing. Goodput
is the largest rate of requests on time, over all `u`. Nothing here is simulated or measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medha_jax.config import SchedulerConfig
from medha_jax.scheduler.chunking import PrefillTable
from medha_jax.scheduler.time_model import TickWork
from medha_jax.simulate.cost import CostModel
from medha_jax.simulate.deployments import slice_lengths
from medha_jax.simulate.hardware import Hardware
from medha_jax.simulate.layouts import Candidate, Feasible
from medha_jax.simulate.room import Room
from medha_jax.specs.buckets import many_padded_sizes
from medha_jax.specs.chunk_work import chunk_attentions
from medha_jax.specs.sizes import UNBOUNDED, Sizes
from medha_jax.specs.tick_shapes import TickShapes
from medha_jax.workload import WorkloadRequest

SHARES = np.linspace(0.01, 0.99, 99)  # of the capacity


@dataclass(frozen=True)
class Targets:
    """Promised seconds to the first token (None for `max(1.5 x alone, 0.5 s)`) and per output token."""

    ttft_s: float | None = None
    tpot_s: float = SchedulerConfig().tpot_target_s

    def deadlines(self, alone: np.ndarray) -> np.ndarray:
        """Seconds that each request has to its first token, from its seconds alone `[requests]`."""
        if self.ttft_s is not None:
            return np.full_like(alone, self.ttft_s)
        default = SchedulerConfig().default_deadline_s
        return np.array([default(seconds) for seconds in alone.tolist()])


@dataclass(frozen=True)
class Estimate:
    """Predicted figures of a layout; rates are those of all replicas together.

    Args:
        room: memory of one device.
        ttft_s: seconds to the first token of a longest request alone.
        tpot_s: seconds per output token after it, alone.
        requests_per_s: requests that the layout can serve, however long they wait.
        tokens_per_s: prompt and output tokens of these requests.
        goodput_per_s: most requests on time a second, over all loads. A request is late if its TPOT target is out of
            reach.
        usd_per_million: USD per million tokens, at `tokens_per_s`.
        front: whether no other layout is as good in TTFT, TPOT and goodput, and better in one.
    """

    candidate: Candidate
    room: Room
    ttft_s: float
    tpot_s: float
    requests_per_s: float
    tokens_per_s: float
    goodput_per_s: float
    usd_per_million: float | None
    front: bool = False


@dataclass(frozen=True)
class Estimator:
    """Estimates one layout; `context` is the tokens of a longest request."""

    feasible: Feasible
    hardware: Hardware
    context: int
    targets: Targets
    slots: int

    def estimate(self, sample: Sequence[WorkloadRequest]) -> Estimate:
        """Figures for a longest request, and for traffic like a sample of requests."""
        candidate = self.feasible.candidate
        requests, goodput = self._traffic(sample)
        tokens = requests * sum(one.length + one.output_tokens for one in sample) / len(sample)
        hourly = self.hardware.price * candidate.mesh.devices * candidate.replicas
        return Estimate(
            candidate=candidate,
            room=self.feasible.room,
            ttft_s=self.ttft(self.context),
            tpot_s=self.tpot(self.context),
            requests_per_s=candidate.replicas * requests,
            tokens_per_s=candidate.replicas * tokens,
            goodput_per_s=candidate.replicas * goodput,
            usd_per_million=hourly / 3600 / (candidate.replicas * tokens) * 1e6 if tokens else None,
        )

    def ttft(self, prompt: int, tick_s: float = SchedulerConfig().idle_tick_s) -> float:
        """Seconds to the first token of a prompt alone: its ticks without decodes, and the filling of the pipeline.

        Args:
            prompt: tokens.
            tick_s: most seconds of a tick, which limits the chunks. The scheduler may double it if reading the context
                dominates; that is left out here.
        """
        alone = self._table(tick_s)
        # every further stage runs the last chunk again: in slices, or in a tick
        buckets = self._shapes.buckets(prompt - 1)
        longest = max(buckets.prefill[-1:] + buckets.slices)
        last = alone.between(max(0, prompt - longest), prompt)
        if not buckets.slices:
            last = min(last, tick_s)
        return alone.between(0, prompt) + (self._stages - 1) * last

    def tpot(self, context: int) -> float:
        """Seconds per output token of a request alone, after `context` tokens."""
        mesh = self.cost.sizes.mesh
        per_group = self._shapes.per_group
        rows = mesh.buckets.fewest_decodes
        if context > per_group:
            rows += self._shapes.shared.fewest_decodes
        return self._stages * self.cost.seconds(TickWork(rows, 0, min(context, per_group), 1))

    @cached_property
    def cost(self) -> CostModel:
        """Times of the layout."""
        return CostModel(self.feasible.sizes, self.hardware)

    @property
    def _stages(self) -> int:
        return self.cost.sizes.mesh.spp

    @cached_property
    def _shapes(self) -> TickShapes:
        mesh, lengths = self.cost.sizes.mesh, slice_lengths(self.cost.sizes.layers, self.hardware.name)
        return TickShapes.of(mesh, Sizes.on(mesh, self.context), self.slots, lengths)

    @cached_property
    def _busy(self) -> PrefillTable:
        return self._table(self.targets.tpot_s / self._stages)

    def _table(self, tick_s: float) -> PrefillTable:
        return PrefillTable(self.cost, self._shapes, tick_s, SchedulerConfig().slice_s)

    def _at_least(self, prompts: np.ndarray) -> np.ndarray:
        """Seconds of each prompt as one chunk through all stages; for longer prompts, of the first chunk."""
        own = self.cost.sizes.mesh.buckets
        lengths = np.minimum(prompts, own.prefill[-1])
        rows = np.add(*many_padded_sizes(own, np.zeros_like(lengths), lengths))
        squares = chunk_attentions(np.zeros_like(lengths), lengths, UNBOUNDED)
        return self._stages * self.cost.many(rows, squares, lengths, np.ones_like(lengths))

    def _traffic(self, sample: Sequence[WorkloadRequest]) -> tuple[float, float]:
        """Requests a second that one replica can serve, and requests a second on time."""
        mesh, cost, per_group = self.cost.sizes.mesh, self.cost, self._shapes.per_group
        tick, fewest, most = self.targets.tpot_s / self._stages, mesh.buckets.fewest_decodes, mesh.buckets.decode[-1]
        idle = cost.seconds(TickWork(fewest))
        prompts = np.array([min(one.length, self.context) for one in sample], float)
        outputs = np.array([one.output_tokens for one in sample], float)
        if idle >= tick:
            return 0.0, 0.0
        elapsed = self._busy.elapsed(prompts)
        alone = np.maximum(elapsed, self._at_least(prompts))
        # a prompt's ticks are nearly as long as allowed; all but `idle` of each goes to its chunk
        own = self._busy.elapsed(np.minimum(prompts, per_group))
        work = (1 - idle / tick) * (own / mesh.kvp + (elapsed - own))
        # with one decode size, `idle` has the rows of every decode
        row = (cost.shape_seconds(most) - cost.shape_seconds(fewest)) / (most - fewest) if most > fewest else 0.0
        read = np.minimum(prompts + outputs / 2, per_group) * cost.context_s
        share = np.where(prompts > per_group, 1.0, 1 / mesh.kvp)
        work = work + outputs * (row + cost.used.row_s + read) * share
        capacity = (1 - idle / tick) / float(work.mean())
        stretched = alone[None, :] / (1 - SHARES[:, None])
        in_time = (stretched <= self.targets.deadlines(alone)).mean(axis=1)
        return capacity, float((SHARES * in_time).max()) * capacity


def mark_front(estimates: Sequence[Estimate]) -> list[bool]:
    """Whether each estimate is on the Pareto front of least TTFT, least TPOT and most goodput."""
    figures = np.array([(one.ttft_s, one.tpot_s, -one.goodput_per_s) for one in estimates])
    return [not bool(np.any(np.all(figures <= mine, axis=1) & np.any(figures < mine, axis=1))) for mine in figures]
