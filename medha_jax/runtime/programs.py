"""The programs of a configuration on a mesh: their shapes, their lowering and their device state.

This module holds no weights and runs nothing, so it can describe a layout that does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medha_jax.attention import Attention, GpuTarget, choose, empty_pool
from medha_jax.config import RuntimeConfig
from medha_jax.mesh import parameter_spec, per_group, plan_spec, pool_spec, register_spec
from medha_jax.models import Form, form_on_cpu, of_some_layers
from medha_jax.runtime.compiler import compiler_options
from medha_jax.runtime.packing import Geometry
from medha_jax.runtime.parameter_placement import placed_specs
from medha_jax.runtime.plan_layout import PlanLayout
from medha_jax.runtime.shapes import Shape, SliceShape, rows_of_shape
from medha_jax.runtime.slices import build_slice
from medha_jax.runtime.state import DeviceState, empty_slots
from medha_jax.runtime.tick import Program, build_tick
from medha_jax.runtime.tick_results import TickOutput
from medha_jax.specs.buckets import NO_ROWS, Bucket
from medha_jax.specs.layout import Layout, check_layout
from medha_jax.specs.model import Architecture
from medha_jax.specs.rope import rotary_constants
from medha_jax.specs.shape_grid import ShapeGrid
from medha_jax.specs.sizes import Sizes, row_parts

Named = TypeVar("Named")


@dataclass(frozen=True)
class Programs:
    """Every tick and slice of one configuration. Raises LayoutError if the model cannot be divided over the layout.

    `dtype` is that of weights and activations. `target` is the GPU to lower for if it is not the mesh's own.
    """

    config: RuntimeConfig
    arch: Architecture
    dtype: jnp.dtype
    mesh: Mesh
    target: GpuTarget | None = None
    _lowering: Lock = field(default_factory=Lock, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_layout(self.arch, self.layout)

    @cached_property
    def layout(self) -> Layout:
        """Sizes of the mesh axes."""
        return Layout.of(self.config.mesh)

    @cached_property
    def sizes(self) -> Sizes:
        """Sizes of context, pages and page table."""
        return Sizes.of(self.config, self.arch.context)

    @cached_property
    def geometry(self) -> Geometry:
        """Sizes for packing."""
        mesh = self.config.mesh
        group, own, shared = self.sizes.per_group, mesh.buckets, mesh.spread_buckets
        return Geometry(mesh.kvp, mesh.page_size, group, self.config.slots, own, shared)

    @cached_property
    def attention(self) -> Attention:
        """The attention of this mesh. Raises LaunchError if the configured one cannot run here."""
        arch, tp = self.arch, self.layout.tp
        heads = self.layout.expanded_kv_heads(arch.kv_heads) // tp
        return choose(
            self.config.attention,
            self.mesh.devices.flat[0],
            heads=heads,
            group=arch.heads // tp // heads,
            head_dim=arch.head_dim,
            page=self.config.mesh.page_size,
            dtype=self.dtype,
            fp8=self.fp8,
            target=self.target,
        )

    @cached_property
    def compiler_options(self) -> dict[str, str | bool | int]:
        """Options of every program beside XLA's defaults."""
        rows = max(self.largest.rows, self.largest_slice.rows) * self.arch.heads // self.layout.tp
        halves = self.config.mesh.overlap_rows is not None
        return compiler_options(self.config.xla_options, self.mesh.devices.flat[0].platform, rows, halves)

    @property
    def fp8(self) -> bool:
        """Whether the KV pool has eight bits per value."""
        return self.config.kv_dtype == "fp8"

    @cached_property
    def grid(self) -> ShapeGrid:
        """Every shape of the layout."""
        return ShapeGrid.of(self.config.mesh)

    @cached_property
    def plan_layouts(self) -> dict[Bucket, PlanLayout]:
        """The plan layout of each shape."""
        page, buckets = self.config.mesh.page_size, (*self.buckets, *self.slice_buckets)
        return {bucket: PlanLayout(bucket, page, self.attention.layout(bucket)) for bucket in buckets}

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """Every shape of ticks that is compiled ahead."""
        return self.grid.buckets

    @cached_property
    def largest(self) -> Bucket:
        """The largest shape of ticks; the stage register has its size."""
        return max(self.buckets, key=lambda bucket: bucket.rows)

    @cached_property
    def slice_buckets(self) -> tuple[Bucket, ...]:
        """The rows of every slice that is compiled ahead."""
        return self.grid.slice_buckets

    @cached_property
    def largest_slice(self) -> Bucket:
        """The rows of the largest slice, which are held between slices; no rows if there are no slices."""
        return max(self.slice_buckets, key=lambda bucket: bucket.rows, default=Bucket(NO_ROWS))

    @property
    def kept_rows(self) -> int | None:
        """Rows of the hidden states that every program returns, to score prompts; None if nobody may ask for that."""
        return max(self.largest.rows, self.largest_slice.rows) if self.config.prompt_logprobs else None

    @property
    def hidden_shape(self) -> jax.ShapeDtypeStruct:
        """Shape and placement of these hidden states."""
        shape = (self.layout.spp, self.layout.kvp, self.kept_rows or 1, self.arch.embed)
        return jax.ShapeDtypeStruct(shape, self.dtype, sharding=self.placed(register_spec()))

    @cached_property
    def slice_lengths(self) -> tuple[int, ...]:
        """Numbers of layers that a slice may have, increasing; the last one is all layers of a stage."""
        layers = self.layout.padded_layers(self.arch.layers) // self.layout.spp
        if not self.unrolled:
            return tuple(range(1, layers + 1))
        return tuple(sorted({1, -(-layers // 16), -(-layers // 4), layers}))

    @cached_property
    def slices(self) -> tuple[SliceShape, ...]:
        """Every slice that is compiled ahead."""
        return self._slices(self.grid)

    def shapes(self, grid: ShapeGrid) -> tuple[Shape, ...]:
        """The ticks and slices of a grid."""
        return *grid.buckets, *self._slices(grid)

    def _slices(self, grid: ShapeGrid) -> tuple[SliceShape, ...]:
        """The slices of a grid."""
        lengths = self.slice_lengths if self.unrolled else (None,)
        return tuple(SliceShape(bucket, length) for bucket in grid.slice_buckets for length in lengths)

    def form(self, rows: int) -> Form:
        """How weights lie and hidden states run in a program of so many rows."""
        heads = self.arch.heads // self.layout.tp
        return form_on_cpu(rows, self.dtype, heads) if self.on_cpu else Form(placed=True, query_heads=heads)

    @property
    def unrolled(self) -> bool:
        """Whether a program names each of its layers, as on accelerators, or runs them in a loop, as on CPUs.

        A loop compiles faster, and one slice runs any number of layers. An accelerator's host would wait in every step
        of that to read its condition, so there each length has a program.
        """
        return not self.on_cpu

    @property
    def on_cpu(self) -> bool:
        """Whether the programs are for CPUs."""
        return self.target is None and self.mesh.devices.flat[0].platform == "cpu"

    @cached_property
    def parameter_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Every parameter by dotted path, with its placement."""
        return {
            name: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=self.placed(parameter_spec(spec.axes)))
            for name, spec in placed_specs(self.arch, self.layout, self.dtype).items()
        }

    @cached_property
    def constants(self) -> dict[str, np.ndarray]:
        """Rotary constants, which a tick takes beside the parameters; the same on every device."""
        return rotary_constants(self.arch.rope, self.arch.head_dim)

    @cached_property
    def argument_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and placement of parameters and constants."""
        whole = self.placed(parameter_spec(()))
        constants = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for n, x in self.constants.items()}
        return {**self.parameter_shapes, **constants}

    def arguments(self, parameters: Mapping[str, Array]) -> dict[str, Array]:
        """The placed parameters and constants."""
        return {**parameters, **{name: self.put(x, parameter_spec(())) for name, x in self.constants.items()}}

    def taken(self, arguments: Mapping[str, Named], shape: Shape, first: int = 0) -> Mapping[str, Named]:
        """Those of `arguments` that a program takes: a slice of a stated length only the matrices of its own layers.

        `first` is its first layer.
        """
        if not isinstance(shape, SliceShape) or shape.length is None:
            return arguments
        return of_some_layers(arguments, first, shape.length)

    def put(self, value: np.ndarray, spec: Any) -> Array:
        """An array of this host on the mesh, divided as `spec` says; every process calls it with the same one."""
        return jax.make_array_from_callback(value.shape, self.placed(spec), value.__getitem__)

    @cached_property
    def state_specs(self) -> DeviceState:
        """Partition of every array of the device state."""

        def spec(path: tuple[jax.tree_util.GetAttrKey, ...], array: jax.ShapeDtypeStruct) -> PartitionSpec:
            match path[0].name:
                case "pool":
                    return pool_spec(array.ndim)
                case "register" | "held":
                    return register_spec()
                case _:
                    return per_group()

        specs: DeviceState = jax.tree_util.tree_map_with_path(spec, jax.eval_shape(self.empty_state))
        return specs

    @cached_property
    def state_shapes(self) -> DeviceState:
        """Shape and placement of every array of the device state."""
        shapes: DeviceState = jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.placed(spec)),
            jax.eval_shape(self.empty_state),
            self.state_specs,
        )
        return shapes

    def placed(self, spec: Any) -> NamedSharding:
        """A partition on this mesh."""
        return NamedSharding(self.mesh, spec)

    def plan_shape(self, bucket: Bucket) -> jax.ShapeDtypeStruct:
        """Shape and placement of the plans in flight, packed for a bucket."""
        shape = (self.layout.spp, self.layout.kvp, self.plan_layouts[bucket].size)
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=self.placed(plan_spec()))

    def empty_state(self) -> DeviceState:
        """The device state before the first request."""
        arch, layout, config = self.arch, self.layout, self.config
        pool = (
            layout.padded_layers(arch.layers),
            2,
            layout.kvp * self.sizes.pages,
            layout.expanded_kv_heads(arch.kv_heads),
            config.mesh.page_size,
            arch.head_dim,
        )
        # an empty array would lose its sharding
        rows = self.largest.rows if layout.spp > 1 else 1
        held = max(1, self.largest_slice.rows)
        return DeviceState(
            pool=empty_pool(pool, self.dtype, self.fp8),
            table=jnp.zeros((layout.kvp, config.slots, self.sizes.table_width), jnp.int32),
            register=jnp.zeros((layout.spp, layout.kvp, rows, arch.embed), self.dtype),
            held=jnp.zeros((layout.spp, layout.kvp, held, arch.embed), self.dtype),
            last_token=jnp.zeros((layout.kvp, config.slots), jnp.int32),
            slots=empty_slots(layout.kvp, config.slots, arch.vocab),
        )

    def trace(self, shape: Shape) -> jax.stages.Traced:
        """Trace the tick or slice of one shape; the state is donated."""
        bucket = rows_of_shape(shape)
        largest = self.largest_slice if isinstance(shape, SliceShape) else self.largest
        program = Program(
            attention=self.attention,
            arch=self.arch,
            dtype=self.dtype,
            form=self.form(bucket.rows),
            unrolled=self.unrolled,
            layout=self.layout,
            plan=self.plan_layouts[bucket],
            largest=largest,
            keep_logits=self.config.keep_logits,
            parts=row_parts(bucket.rows, self.config.mesh.overlap_rows),
            kept_rows=self.kept_rows,
        )
        function: Callable[..., Any] = build_tick(program)
        hidden: Any = None if self.kept_rows is None else register_spec()
        each: Any = per_group()
        result: Any = TickOutput(each, each, hidden)
        more = list[jax.ShapeDtypeStruct]()
        if isinstance(shape, SliceShape):
            function, result = build_slice(program, shape.length), (register_spec(), hidden)
            more = [jax.ShapeDtypeStruct((2,), jnp.int32, sharding=self.placed(parameter_spec(())))]
        taken = self.taken(self.argument_shapes, shape)
        parameters = {name: shape.sharding.spec for name, shape in taken.items()}
        mapped = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(parameters, self.state_specs, plan_spec(), *(x.sharding.spec for x in more)),
            out_specs=(self.state_specs, result),
            check_vma=False,
        )
        arguments = taken, self.state_shapes, self.plan_shape(bucket), *more
        with self.matmul_precision():
            return jax.jit(mapped, donate_argnums=1).trace(*arguments)

    def matmul_precision(self) -> AbstractContextManager[Any]:
        """For tracing. In float32, XLA for GPUs would multiply in TF32, which keeps ten mantissa bits.

        JAX's setting is per thread.
        """
        exact = self.dtype == jnp.float32 and self.mesh.devices.flat[0].platform != "cpu"
        setting: AbstractContextManager[Any] = jax.default_matmul_precision("highest" if exact else None)
        return setting

    def lower(self, shape: Shape) -> jax.stages.Lowered:
        """Trace and lower the tick or slice of one shape; for CUDA if there is a `target`, even on a CPU mesh."""
        traced = self.trace(shape)
        lowered: jax.stages.Lowered
        if not self.attention.lowers_alone:
            lowered = traced.lower()
            return lowered
        with self._lowering:
            lowered = traced.lower(lowering_platforms=("cuda",) if self.target else None)
        return lowered
