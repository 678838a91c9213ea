"""Seconds of a tick or slice, from the sizes of model, mesh and hardware: a roofline of each part, in closed form.

A tick of one device, and a slice of n of its layers; all stages run in the same shape:

    tick       = tick_s + max(layers launch_s, shape + attention) + row_s real rows
    shape      = layers (matmul + 2 sum(tp) + gather(kvp)) + sum(tp) + head + move(spp) + logits
    matmul     = max(2 weights (rows + matmul_rows) / (matmul peak), bytes / (weights bandwidth))
    attention  = sum over prompt chunks of max(FLOP / (attention peak), KV bytes / (kv bandwidth))
               + KV bytes of decodes / (kv bandwidth)
    slice      = tick_s + max(n launch_s, n (matmul + 2 sum(tp) + gather(kvp)) + n/layers attention + ends)
    ends       = sum(tp) + move(spp): embedding and hand-on, which every slice has
    sum(n)     = 2 (p - 1)/p n / (link bandwidth) + latency,  gather(n) = (p - 1)/p n / (link bandwidth) + latency

`rows` are the rows of the shape, padding included. A mesh's `overlap_rows` counts for nothing: a sum over tp runs
beside no product, because no GPU was measured with it. `DeviceSizes.collectives` gives the bytes of collectives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from medha_jax.config import STAGE, TENSOR, MeshConfig
from medha_jax.scheduler.time_model import TickWork, WorkTimes
from medha_jax.simulate.device_sizes import Collective, DeviceSizes
from medha_jax.simulate.hardware import Coefficients, Hardware, Link
from medha_jax.simulate.times import GroupWork
from medha_jax.specs.buckets import Bucket, Segment
from medha_jax.specs.model import Architecture

ACTIVATIONS = 12  # times that a layer reads or writes its rows: norms, projections, residuals


class SliceParts(NamedTuple):
    """Seconds of a slice's shape: each layer, and both ends, which every slice has."""

    layer: float
    ends: float


@dataclass(frozen=True)
class CostModel:
    """Times of ticks and slices of a model on a mesh of some hardware. The scheduler predicts with it, too.

    The scheduler knows only the sums over a tick (`TickWork`), not each chunk. In a prompt chunk, reading KV and
    arithmetic overlap. Of a tick with n real rows the model lets one n-th of the KV overlap: exact for a chunk alone,
    too long for a long chunk beside short decodes, never too short for equal contexts.

    Args:
        sizes: one device's part of the model.
        coefficients: replace those of the hardware.
        query_tile: rows of a thread block, for attention kernels that do not split the KV of a chunk: a chunk of few
            queries then leaves cores idle. None for kernels that split it.
    """

    sizes: DeviceSizes
    hardware: Hardware
    coefficients: Coefficients | None = None
    query_tile: int | None = None

    @classmethod
    def of(cls, model: Architecture, mesh: MeshConfig, hardware: Hardware, dtype: str = "bfloat16") -> CostModel:
        """The cost model of a model on a mesh."""
        return cls(DeviceSizes(model, mesh, dtype), hardware)

    @cached_property
    def used(self) -> Coefficients:
        """The coefficients in use."""
        return self.coefficients or self.hardware.coefficients

    @cached_property
    def attention_s(self) -> float:
        """Seconds for one row to attend to one token of its context."""
        peak = self.hardware.peak_of(self.sizes.dtype)
        return self.sizes.attention_flops / (self.used.attention * peak)

    @cached_property
    def context_s(self) -> float:
        """Seconds to read one token's KV."""
        return self.sizes.kv_token_bytes / (self.used.kv * self.hardware.bandwidth)

    @cached_property
    def slices(self) -> WorkTimes:
        """Predicts the seconds of slices."""
        return SliceCost(self)

    def seconds(self, work: TickWork) -> float:
        """Seconds of a tick, from the sums over its slowest group."""
        arithmetic, reading = self.attention_s * work.attention, self.context_s * work.context
        if self.query_tile is not None and work.context:
            arithmetic *= float(self.spread(np.array(work.attention / work.context)))
        hidden = min(arithmetic, reading / work.rows) if work.rows else 0.0
        return self._tick(self.shape_seconds(work.tokens), arithmetic + reading - hidden, work.rows)

    def many(self, tokens: np.ndarray, attention: np.ndarray, context: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Seconds of many ticks; float64 arrays of one shape `[ticks]`."""
        sizes, places = np.unique(tokens, return_inverse=True)
        shape = np.array([self.shape_seconds(int(size)) for size in sizes])[places].reshape(np.shape(tokens))
        arithmetic, reading = self.attention_s * attention, self.context_s * context
        if self.query_tile is not None:
            arithmetic = arithmetic * self.spread(attention / np.maximum(context, 1))
        hidden = np.where(rows > 0, np.minimum(arithmetic, reading / np.maximum(rows, 1)), 0.0)
        used, device = self.used, shape + arithmetic + reading - hidden
        return used.tick_s + np.maximum(self._launch, device) + used.row_s * rows

    def observe(self, work: TickWork, seconds: float) -> None:
        """Does nothing: the model is fixed."""

    def group_seconds(self, shape: Bucket, work: GroupWork) -> float:
        """Seconds of a group's part of a tick."""
        attention = self.context_s * work.context + self._chunk_attention(work)
        return self._tick(self._of_shape(shape), attention, work.rows)

    def slice_seconds(self, shape: Bucket, layers: int, work: GroupWork) -> float:
        """Seconds of a group's part of a slice."""
        return self.of_slice(layers, self.slice_parts(shape), self._chunk_attention(work))

    def of_slice(self, layers: int, parts: SliceParts, attention: float) -> float:
        """Seconds of a slice; `attention` are those of all layers of a stage."""
        device = layers * (parts.layer + attention / self.sizes.layers) + parts.ends
        return self.used.tick_s + max(layers * self.used.launch_s, device)

    def slice_parts(self, shape: Bucket) -> SliceParts:
        """Seconds of a slice's shape, whatever it contains."""
        known = self._sliced.get(shape)
        return self._slice_parts(shape) if known is None else known

    def shape_seconds(self, rows: int) -> float:
        """Seconds that every tick of a shape takes, whatever it contains; the shape is given by its number of rows.

        If two shapes have the same number of rows, the one with more shared rows counts, because it takes longer.
        """
        shape = self._by_rows.get(rows)
        return self._of_shape(Bucket(Segment(rows)) if shape is None else shape)

    def parts(self, shape: Bucket) -> dict[str, float]:
        """Seconds of each part of a shape: matmul, head, and collectives by axis."""
        sizes = self.sizes
        found = {
            "matmul": sizes.layers * self._product(sizes.layer_weights, shape.rows, ACTIVATIONS),
            "head": self._product(sizes.head_weights, shape.samples, 2),
        }
        for one in sizes.collectives(shape):
            found[one.axis] = found.get(one.axis, 0.0) + one.count * self._collective(one)
        return found

    def link(self, axis: str) -> Link:
        """The link that joins the devices of an axis; devices lie as `[spp, kvp, tp]`, so `tp` are neighbours."""
        mesh = self.sizes.mesh
        span = mesh.tp * (1 if axis == TENSOR else mesh.kvp) * (mesh.spp if axis == STAGE else 1)
        return self.hardware.near if span <= self.hardware.node else self.hardware.far

    def spread(self, queries: np.ndarray) -> np.ndarray:
        """Factor by which chunks of `queries` rows take longer because their blocks do not fill the cores."""
        blocks = np.maximum(1.0, queries / (self.query_tile or 1)) * self.sizes.heads
        return np.maximum(1.0, self.hardware.cores / blocks)

    @cached_property
    def _launch(self) -> float:
        return self.sizes.layers * self.used.launch_s

    @cached_property
    def _by_rows(self) -> dict[int, Bucket]:
        return _most_shared(self.sizes.buckets)

    @cached_property
    def _sliced(self) -> dict[Bucket, SliceParts]:
        return {shape: self._slice_parts(shape) for shape in self.sizes.slice_shapes}

    def _slice_parts(self, shape: Bucket) -> SliceParts:
        def sent(layers: int) -> float:
            return sum(one.count * self._collective(one) for one in self.sizes.slice_collectives(shape, layers))

        ends = sent(0)
        return SliceParts(self._product(self.sizes.layer_weights, shape.rows, ACTIVATIONS) + sent(1) - ends, ends)

    @cached_property
    def _compiled(self) -> dict[Bucket, float]:
        return {shape: sum(self.parts(shape).values()) for shape in self.sizes.buckets}

    def _chunk_attention(self, work: GroupWork) -> float:
        """Seconds of the attention of prompt chunks, in all layers of a stage."""
        attention = 0.0
        for squares, context in work.chunks:
            arithmetic = self.attention_s * squares
            if self.query_tile is not None:
                arithmetic *= float(self.spread(np.array(squares / context)))
            attention += max(arithmetic, self.context_s * context)
        return attention

    def _tick(self, shape: float, attention: float, rows: int) -> float:
        used = self.used
        return used.tick_s + max(self._launch, shape + attention) + used.row_s * rows

    def _of_shape(self, shape: Bucket) -> float:
        known = self._compiled.get(shape)
        return sum(self.parts(shape).values()) if known is None else known

    def _product(self, weights: int, rows: int, passes: int) -> float:
        """Seconds of a product of `rows` rows with `weights` elements; the rows are read or written `passes` times."""
        sizes, used, hardware = self.sizes, self.used, self.hardware
        arithmetic = 2 * weights * (rows + used.matmul_rows) / (used.matmul * hardware.peak_of(sizes.dtype))
        nbytes = (weights + passes * rows * sizes.model.embed) * sizes.itemsize
        return max(arithmetic, nbytes / (used.weights * hardware.bandwidth))

    def _collective(self, one: Collective) -> float:
        link = self.link(one.axis)
        count: int = getattr(self.sizes.mesh, one.axis)
        share = (count - 1) / count
        sent = {"all-reduce": 2 * share, "all-gather": share, "collective-permute": 1.0}[one.kind] * one.nbytes
        return sent / (self.used.link * link.bandwidth) + link.latency


@dataclass(frozen=True)
class SliceCost:
    """Slice times of a cost model, from the sums that the scheduler knows (`slice_work`); exact for one chunk."""

    cost: CostModel

    def seconds(self, work: TickWork) -> float:
        """Seconds of a slice, from the sums over its slowest group; no layers take no time."""
        cost, layers = self.cost, work.rows
        if not layers:
            return 0.0
        arithmetic, reading = cost.attention_s * work.attention, cost.context_s * work.context
        if cost.query_tile is not None and work.context:
            arithmetic *= float(cost.spread(np.array(work.attention / work.context)))
        return cost.of_slice(layers, self._parts(work.tokens // layers), max(arithmetic, reading) / layers)

    def many(self, tokens: np.ndarray, attention: np.ndarray, context: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Seconds of many slices; float64 arrays of one shape `[slices]`."""
        cost, used = self.cost, self.cost.used
        sizes, places = np.unique(tokens // np.maximum(rows, 1), return_inverse=True)
        layer, ends = np.array([self._parts(int(size)) for size in sizes]).T[:, places.reshape(np.shape(tokens))]
        arithmetic, reading = cost.attention_s * attention, cost.context_s * context
        if cost.query_tile is not None:
            arithmetic = arithmetic * cost.spread(attention / np.maximum(context, 1))
        device = rows * layer + np.maximum(arithmetic, reading) / cost.sizes.layers + ends
        return np.where(rows > 0, used.tick_s + np.maximum(rows * used.launch_s, device), 0.0)

    def observe(self, work: TickWork, seconds: float) -> None:
        """Does nothing: the model is fixed."""

    def _parts(self, rows: int) -> SliceParts:
        """Those of the shape of so many rows."""
        known = self._by_rows.get(rows)
        return self.cost.slice_parts(Bucket(Segment(0, rows, 1))) if known is None else known

    @cached_property
    def _by_rows(self) -> dict[int, SliceParts]:
        shapes = _most_shared(self.cost.sizes.slice_shapes)
        return {rows: self.cost.slice_parts(shape) for rows, shape in shapes.items()}


def _most_shared(shapes: Iterable[Bucket]) -> dict[int, Bucket]:
    """Shapes by their rows; of two with as many, the one with more shared rows."""
    found: dict[int, Bucket] = {}
    for shape in shapes:
        if shape.rows not in found or shape.shared.rows > found[shape.rows].shared.rows:
            found[shape.rows] = shape
    return found
