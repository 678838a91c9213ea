"""Machines for the simulator: from a cost model, or from published times.

The published times are the Medha paper's authors': Llama-3 8B on 16 A100, two pipeline stages of eight, chunks of
2,048. docs/scheduling.md ("The machine") derives the coefficients of a tick. Two steps are not there: N chunks leave
after N + 1 ticks, so the constant of the fit is the tick that fills the pipeline. A decode row is assumed to cost as
much as a prompt row. The fit is within 11 % of the authors' nine figures from 2K to 1M tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.scheduler.time_model import LinearTimeModel, TimeModel, WorkTimes
from medha_jax.simulate.cost import CostModel
from medha_jax.simulate.device_sizes import DeviceSizes
from medha_jax.simulate.hardware import SpecError, load_hardware
from medha_jax.simulate.named_models import load_model
from medha_jax.simulate.room import room_of
from medha_jax.simulate.times import GroupTimes, SummedTimes
from medha_jax.specs.buckets import many_padded_sizes, smallest_sizes
from medha_jax.specs.chunk_work import chunk_attentions, chunk_reads
from medha_jax.specs.sizes import Sizes
from medha_jax.specs.tick_shapes import TickShapes

CHUNK = 2048  # tokens of a chunk in the measured prefills
PREFILL = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, CHUNK)  # at most half is padding
FIT = (0.0387, 1.70e-5, 1.393e-10)  # seconds: constant, per token, per token²
TPOT_SHORT_S = 0.0075
TPOT_1M_S = 0.187
LAYERS = 16  # of a stage
SLICES = (512, CHUNK)
OVERLAP = "overlap_rows is not modelled, so sums over tp run beside nothing"
SLICE_S = 2e-4  # assumed: what a slice takes besides its layers


def fitted(context: float) -> LinearTimeModel:
    """Coefficients that give the published prefill if a stage reads a token of KV in `context` seconds."""
    fixed = TPOT_SHORT_S / 2
    tokens = FIT[1] - fixed / CHUNK
    # N chunks read 2048 (1 + … + N) = n²/4096 tokens of KV
    return LinearTimeModel(fixed, tokens, 2 * (FIT[2] - context / (2 * CHUNK)), context)


@dataclass(frozen=True)
class Deployment:
    """A machine to simulate: its shapes, its KV pool and the time model of its scheduler.

    Args:
        config: only mesh, slots and pool are used; there is no model to load.
        context: most tokens of one request.
        devices: real times of the devices; None if they equal the scheduler's predictions.
        slice_lengths: numbers of layers that a slice may have, increasing; the last one is all layers of a stage.
    """

    name: str
    about: str
    model: TimeModel
    config: RuntimeConfig
    context: int
    devices: GroupTimes | None = None
    slice_lengths: tuple[int, ...] = (1,)

    @property
    def times(self) -> GroupTimes:
        """Real times of the devices."""
        return self.devices or SummedTimes(self.model)

    @cached_property
    def shapes(self) -> TickShapes:
        """What the scheduler can run in a tick."""
        sizes = Sizes.of(self.config, self.context)
        return TickShapes.of(self.config.mesh, sizes, self.config.slots, self.slice_lengths)

    @property
    def chunks_only(self) -> Deployment:
        """The same machine without slices."""
        mesh = self.config.mesh
        own = replace(mesh.buckets, slices=())
        shared = mesh.shared_buckets and replace(mesh.shared_buckets, slices=())
        return replace(self, config=replace(self.config, mesh=replace(mesh, buckets=own, shared_buckets=shared)))

    def isolated_prefill(self, prompt: int) -> float:
        """Seconds to the first token of a prompt alone, in chunks of the largest size: ticks, or slices if faster.

        N chunks take N + spp - 1 ticks or rounds. All stages run in the largest shape in flight and wait for the
        slowest. A slice has all layers of a stage; the rest of the prompt, at least a token, is a tick.
        """
        in_ticks, shapes = self._in_ticks(*self._chunks(0, prompt, "prefill")), self.shapes
        sizes = shapes.buckets(prompt - 1)
        if not shapes.own.slices or not shapes.shared.slices:
            return in_ticks
        rest = ((prompt - 1) % shapes.per_group) % sizes.slices[-1] + 1
        rest = rest if rest <= sizes.prefill[-1] else 1
        if rest == prompt:
            return in_ticks
        sliced = self._in_slices(*self._chunks(0, prompt - rest, "slices"))
        return min(in_ticks, sliced + self._in_ticks(*self._chunks(prompt - rest, prompt, "prefill")))

    def _in_ticks(self, starts: np.ndarray, lengths: np.ndarray) -> float:
        """Seconds of chunks in ticks."""
        own, shared = self.shapes.own, self.shapes.shared
        spread, several = starts >= self.shapes.per_group, lengths > 1  # a chunk of one token is a decode row
        decodes, tokens = np.where(several, 0, 1), np.where(several, lengths, 0)
        rows = (
            *many_padded_sizes(own, np.where(spread, 0, decodes), np.where(spread, 0, tokens)),
            *(np.where(spread, size, 0) for size in many_padded_sizes(shared, decodes, tokens)),
        )
        attention = chunk_attentions(starts, lengths, self.shapes.per_group) * several
        return self._pipelined(self.model, rows, attention, starts + lengths, 1)

    def _in_slices(self, starts: np.ndarray, lengths: np.ndarray) -> float:
        """Seconds of chunks in slices of all layers."""
        spread = starts >= self.shapes.per_group
        rows = (
            smallest_sizes((0, *self.shapes.own.slices), np.where(spread, 0, lengths)),
            smallest_sizes((0, *self.shapes.shared.slices), np.where(spread, lengths, 0)),
        )
        attention = chunk_attentions(starts, lengths, self.shapes.per_group)
        return self._pipelined(self.model.slices, rows, attention, starts + lengths, self.shapes.layers)

    def _pipelined(
        self, times: WorkTimes, rows: Sequence[np.ndarray], attention: np.ndarray, ends: np.ndarray, layers: int
    ) -> float:
        """Seconds of chunks that pass the stages one behind the other.

        Args:
            rows: of each chunk, in each part of a shape.
            attention, ends: of each chunk: tokens², and the context after it.
            layers: that a feature counts for; 1 for ticks.
        """
        stages = self.shapes.stages

        def in_stages(feature: np.ndarray) -> np.ndarray:
            """A feature of each chunk, by tick and stage `[chunks + stages - 1, stages]`."""
            table = np.zeros((len(ends) + stages - 1, stages))
            for stage in range(stages):
                table[stage : stage + len(ends), stage] = feature
            return table

        largest = np.sum([in_stages(part).max(axis=1, keepdims=True) for part in rows], axis=0)
        of_chunks = attention, chunk_reads(ends, self.shapes.per_group), np.ones_like(ends)
        features = np.repeat(largest, stages, axis=1), *map(in_stages, of_chunks)
        seconds = times.many(*(layers * feature for feature in features))
        return float(seconds.max(axis=1).sum())

    def _chunks(self, first: int, past: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Start and length of every chunk of tokens `[first, past)`; chunks end at the borders between groups."""
        starts, ends = [], []
        while first < past:
            last = min(past, first + self.shapes.left_on_group(first))
            size = getattr(self.shapes.buckets(first), kind)[-1]
            starts.append(np.arange(first, last, size, dtype=np.float64))
            ends.append(np.append(starts[-1][1:], last))
            first = last
        begin = np.concatenate(starts)
        return begin, np.concatenate(ends) - begin


def deploy(cost: CostModel, context: int, slots: int, model: str, name: str = "") -> Deployment:
    """A machine with the times of a cost model; an empty `name` is made of model, hardware and mesh.

    Raises:
        SpecError: the longest request does not fit.
    """
    room = room_of(cost.sizes, cost.hardware, slots, context)
    if room.shortage:
        raise SpecError(room.shortage)
    mesh = cost.sizes.mesh
    config = RuntimeConfig(mesh=mesh, slots=slots, pool_tokens=room.pool_tokens, max_context=context)
    about = f"{model} on {mesh.devices} x {cost.hardware.name}, {mesh}"
    words = about if mesh.overlap_rows is None else f"{about}; {OVERLAP}"
    lengths = slice_lengths(cost.sizes.layers, cost.hardware.name)
    return Deployment(name or about, words, cost, config, context, cost, lengths)


def slice_lengths(layers: int, hardware: str) -> tuple[int, ...]:
    """Numbers of layers that a slice may have, as in the runtime: any on a CPU; on a GPU, each has a program."""
    if hardware == "cpu":
        return tuple(range(1, layers + 1))
    return tuple(sorted({1, -(-layers // 16), -(-layers // 4), layers}))


def modelled(model: str, layout: MeshConfig, context: int, slots: int) -> Deployment:
    """The machine that a layout is meant for, with the times of its cost model.

    Raises:
        SpecError: the model or the hardware is not known, or the longest request does not fit.
    """
    hardware = load_hardware(layout.hardware)
    dtype = "float32" if hardware.name == "cpu" else "bfloat16"
    cost = CostModel(DeviceSizes(load_model(model), layout.for_slots(slots), dtype), hardware)
    return deploy(cost, context, slots, model)


def _a100_16(name: str, about: str, context: float) -> Deployment:
    buckets = Buckets(decode=(1, 8, 32, 128), prefill=PREFILL, slices=SLICES, chunks=8)
    mesh = MeshConfig(tp=8, spp=2, page_size=64, buckets=buckets, hardware="a100")
    # 16 x 80 GB, 0.9 of it usable; 16 GB are weights and a token of KV is 128 KiB
    pool = int((16 * 80e9 * 0.9 - 16e9) / 2**17)
    config = RuntimeConfig(mesh=mesh, slots=128, pool_tokens=pool, max_context=2**21)
    model = fitted(context).per_layer(LAYERS, SLICE_S)
    return Deployment(name, about, model, config, 2**21, slice_lengths=slice_lengths(LAYERS, "a100"))


DEPLOYMENTS = {
    deployment.name: deployment
    for deployment in (
        _a100_16(
            "a100-16",
            "Llama-3 8B on 16 A100: prefill as published, KV read at 70 % of the memory's 2.0 TB/s (assumed)",
            2**17 / 16 / (0.7 * 2.0e12),
        ),
        _a100_16(
            "a100-16-slow-kv",
            "the same, with KV read as slowly as the published time of an output token at 1M tokens says",
            (TPOT_1M_S - TPOT_SHORT_S) / 2 / 2**20,
        ),
    )
}
