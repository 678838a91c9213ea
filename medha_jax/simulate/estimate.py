"""What a layout would do for a longest request and for traffic, in closed form, to compare hundreds of them.

Traffic is a fluid: ticks of the length that the TPOT target allows, `T = tpot / spp`, of which the shape without rows
takes `idle`. A request adds the seconds of its prompt chunks beyond `idle`, and for each token of output a row and the
KV that it reads. Requests of one group run beside those of the others; what is spread over groups runs on all of them.

    capacity = (1 - idle / T) / E[seconds of a request]

At a share `u` of the capacity a prompt is taken to need `alone / (1 - u)` to its first token, as under processor
sharing; goodput is the largest rate of requests on time, over all `u`. Nothing of this is simulated or measured.
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
from medha_jax.simulate.hardware import Hardware
from medha_jax.simulate.layouts import Candidate, Feasible
from medha_jax.simulate.room import Room
from medha_jax.specs.buckets import smallest_sizes
from medha_jax.specs.chunk_work import chunk_attentions
from medha_jax.specs.sizes import UNBOUNDED, Sizes
from medha_jax.specs.tick_shapes import TickShapes
from medha_jax.workload import WorkloadRequest

SHARES = np.linspace(0.01, 0.99, 99)  # of the capacity


@dataclass(frozen=True)
class Targets:
    """What is promised: seconds to the first token, None for `max(1.5 x alone, 0.5 s)`, and per token of output."""

    ttft_s: float | None = None
    tpot_s: float = SchedulerConfig().tpot_target_s

    def deadlines(self, alone: np.ndarray) -> np.ndarray:
        """Seconds to the first token that each request has, by its seconds alone `[requests]`."""
        if self.ttft_s is not None:
            return np.full_like(alone, self.ttft_s)
        return np.array([SchedulerConfig().default_deadline_s(seconds) for seconds in alone.tolist()])


@dataclass(frozen=True)
class Estimate:
    """A layout's predicted figures; rates are those of all replicas together.

    Args:
        candidate: the layout.
        room: its memory.
        ttft_s: seconds to the first token of a longest request alone.
        tpot_s: seconds per token of output after it, alone.
        requests_per_s: that the layout could serve, whatever they wait.
        tokens_per_s: of prompts and output in these.
        goodput_per_s: requests on time a second, at the load that has most of them; those whose TPOT target is out of
            reach count as late.
        usd_per_million: tokens, at that rate of tokens.
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
    """Estimates one layout.

    Args:
        feasible: the layout.
        hardware: its devices.
        context: tokens of a longest request.
        targets: what is promised.
        slots: most requests at once.
    """

    feasible: Feasible
    hardware: Hardware
    context: int
    targets: Targets
    slots: int

    def estimate(self, sample: Sequence[WorkloadRequest]) -> Estimate:
        """The layout's figures for a longest request and for traffic like a sample of requests."""
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
            tick_s: most seconds of a tick, by which chunks are chosen; what the scheduler aims at without decodes.
                That it may take longer where reading the context takes most of it is left out.
        """
        alone = PrefillTable(self.cost, self._shapes, tick_s)
        # the last chunk's tick again for every further stage
        longest = self._shapes.buckets(prompt - 1).prefill[-1]
        last = min(alone.between(max(0, prompt - longest), prompt), tick_s)
        return alone.between(0, prompt) + (self._stages - 1) * last

    def tpot(self, context: int) -> float:
        """Seconds per token of output of a request alone, with so many tokens behind it."""
        mesh = self.cost.sizes.mesh
        per_group = self._shapes.per_group
        rows = mesh.buckets.decode[0]
        if context > per_group:
            rows += self._shapes.shared.decode[0]
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
        mesh = self.cost.sizes.mesh
        return TickShapes.of(mesh, Sizes.on(mesh, self.context), self.slots)

    @cached_property
    def _busy(self) -> PrefillTable:
        """Ticks of a prompt beside decodes."""
        return PrefillTable(self.cost, self._shapes, self.targets.tpot_s / self._stages)

    def _at_least(self, prompts: np.ndarray) -> np.ndarray:
        """Seconds of prompts in one chunk through all stages; of longer ones, of their first chunk."""
        own = self.cost.sizes.mesh.buckets
        lengths = np.minimum(prompts, own.prefill[-1])
        rows = own.decode[0] + smallest_sizes(own.prefill, lengths)
        squares = chunk_attentions(np.zeros_like(lengths), lengths, UNBOUNDED)
        return self._stages * self.cost.many(rows, squares, lengths, np.ones_like(lengths))

    def _traffic(self, sample: Sequence[WorkloadRequest]) -> tuple[float, float]:
        """Requests a second that one replica can serve, and that it serves on time."""
        mesh, cost, per_group = self.cost.sizes.mesh, self.cost, self._shapes.per_group
        tick, decode = self.targets.tpot_s / self._stages, mesh.buckets.decode
        idle = cost.seconds(TickWork(decode[0]))
        prompts = np.array([min(one.length, self.context) for one in sample], float)
        outputs = np.array([one.output_tokens for one in sample], float)
        if idle >= tick:
            return 0.0, 0.0
        elapsed = self._busy.elapsed(prompts)
        alone = np.maximum(elapsed, self._at_least(prompts))
        # ticks of a prompt are about as long as they may be, and all but `idle` of each is for its chunk
        own = self._busy.elapsed(np.minimum(prompts, per_group))
        work = (1 - idle / tick) * (own / mesh.kvp + (elapsed - own))
        row = (cost.shape_seconds(decode[-1]) - cost.shape_seconds(decode[0])) / (decode[-1] - decode[0])
        read = np.minimum(prompts + outputs / 2, per_group) * cost.context_s
        share = np.where(prompts > per_group, 1.0, 1 / mesh.kvp)
        work = work + outputs * (row + cost.used.row_s + read) * share
        capacity = (1 - idle / tick) / float(work.mean())
        stretched = alone[None, :] / (1 - SHARES[:, None])
        in_time = (stretched <= self.targets.deadlines(alone)).mean(axis=1)
        return capacity, float((SHARES * in_time).max()) * capacity


def mark_front(estimates: Sequence[Estimate]) -> list[bool]:
    """Whether each is on the Pareto front of least TTFT, least TPOT and most goodput."""
    figures = np.array([(one.ttft_s, one.tpot_s, -one.goodput_per_s) for one in estimates])
    return [not bool(np.any(np.all(figures <= mine, axis=1) & np.any(figures < mine, axis=1))) for mine in figures]
