"""The mesh executor: owns the device state and runs one compiled tick for each plan."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from medha_jax.config import RuntimeConfig
from medha_jax.plan import Admission, SamplingParams, StepPlan, TokenResult
from medha_jax.runtime.executables import Compiled, ExecutableTable, use_compilation_cache
from medha_jax.runtime.packing import EMPTY, bucket_for, pack
from medha_jax.runtime.programs import Programs
from medha_jax.runtime.state import admission_arrays, admit, adopt, adoption_arrays
from medha_jax.runtime.tick_results import TickHandle, local_results
from medha_jax.specs.buckets import Bucket
from medha_jax.specs.model import Architecture

Report = Callable[[str], Any]


class MeshExecutor:
    """Runs plans on a mesh of devices; the only owner of the device state.

    Args:
        config: sizes and settings.
        arch: the model.
        parameters: placed on the mesh (`placement.place_parameters`).
        mesh: the devices.
        report: told what start-up does, a line at a time.

    Raises:
        LayoutError: the model cannot be divided over the mesh.
        LaunchError: the configuration asks for attention that cannot run on it.
    """

    def __init__(
        self, config: RuntimeConfig, arch: Architecture, parameters: Mapping[str, Array], mesh: Mesh, report: Report
    ) -> None:
        self.config = config
        self.programs = Programs(config, arch, parameters["embedding"].dtype, mesh)
        self.sizes, self.vocab = self.programs.sizes, arch.vocab
        self.prefix_cacheable = not arch.rope.follows_length
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        # a host would wait for an accelerator between ticks; CPU devices compute on the host's own cores
        self.ahead = 0 if on_cpu else 1
        # with few cores, a second program on several CPU devices deadlocks in its collectives
        self._one_at_a_time = on_cpu and mesh.devices.size > 1
        self._parameters = self.programs.arguments(parameters)
        self._flight = deque([EMPTY] * config.mesh.spp, config.mesh.spp)
        use_compilation_cache(config.compilation_cache)
        self.executables = self._compile(report)
        shardings = jax.tree.map(lambda shape: shape.sharding, self.programs.state_shapes)
        self._make_state = jax.jit(self.programs.empty_state, out_shardings=shardings)
        self._state = jax.block_until_ready(self._make_state())
        nobody = (self._state.slots, *self._admission(Admission(0, SamplingParams(), 0)))
        self._admit = jax.jit(admit, donate_argnums=0, out_shardings=shardings.slots).lower(*nobody).compile()
        nothing = (self._state.table, *self._adoption(0, 0, ()))
        self._adopt = jax.jit(adopt, donate_argnums=0, out_shardings=shardings.table).lower(*nothing).compile()

    def usable(self) -> bool:
        """Whether the state is there: a program that fails takes its donated arguments with it. Waits for ticks."""
        arrays = jax.tree.leaves(self._state)
        try:
            jax.block_until_ready(arrays)
        except RuntimeError:
            return False
        return not any(array.is_deleted() for array in arrays)

    def renew(self) -> None:
        """Begin again with an empty state and nothing in flight, after an error that took the old one."""
        for array in jax.tree.leaves(self._state):
            if not array.is_deleted():
                array.delete()  # two pools would not fit
        self._flight.extend([EMPTY] * self.config.mesh.spp)
        self._state = jax.block_until_ready(self._make_state())

    def admit(self, admission: Admission) -> None:
        """Give a slot to a request on every group."""
        slots = self._admit(self._state.slots, *self._admission(admission))
        if self._one_at_a_time:
            jax.block_until_ready(slots)
        self._state = dataclasses.replace(self._state, slots=slots)

    def adopt(self, slot: int, group: int, pages: Sequence[int]) -> None:
        """Make pages that are filled already the first ones of an admitted request on a group.

        Args:
            slot: of a request that was admitted and has run no chunk.
            group: that holds the pages.
            pages: filled with the KV of the prompt's first tokens, in order; the first chunk starts after them.

        Raises:
            ValueError: there is no such slot or group, or there are more pages than a request can have.
        """
        groups, slots, width = self._state.table.shape
        if not (0 <= slot < slots and 0 <= group < groups and len(pages) <= width):
            raise ValueError(
                f"{len(pages)} pages for slot {slot} of group {group}; there are {slots} slots of {width} pages on "
                f"{groups} groups"
            )
        table = self._adopt(self._state.table, *self._adoption(slot, group, pages))
        if self._one_at_a_time:
            jax.block_until_ready(table)
        self._state = dataclasses.replace(self._state, table=table)

    def bucket(self, plan: StepPlan) -> Bucket:
        """The shape that a tick would have in which `plan` enters.

        Raises:
            UnknownShapeError: the plans in flight are larger than every compiled shape.
        """
        return bucket_for(self._entering(plan), self.programs.geometry)

    def submit(self, plan: StepPlan) -> TickHandle:
        """Dispatch one tick, in which `plan` enters the first stage and an earlier one leaves the last.

        Raises:
            UnknownShapeError: the plans in flight are larger than every compiled shape; nothing was dispatched.
        """
        flight, bucket = self._entering(plan), self.bucket(plan)
        packed = pack(flight, self.programs.plan_layouts[bucket], self.programs.geometry)
        plans: np.ndarray | Array = packed
        if jax.process_count() > 1:  # a program over several processes takes no host array that is divided
            sharding = self.programs.plan_shape(bucket).sharding
            plans = jax.make_array_from_callback(packed.shape, sharding, lambda index: packed[index])
        self._state, sampled = self.executables.compiled(bucket)(self._parameters, self._state, plans)
        self._flight.appendleft(plan)
        if self._one_at_a_time:
            jax.block_until_ready(sampled)
        return TickHandle(flight[-1], bucket, sampled)

    def collect(self, handle: TickHandle) -> list[TokenResult]:
        """Wait for a tick; one result for each chunk of its leaving plan, in order.

        Every group must lie on this process.
        """
        results = local_results(handle)
        return [results[number] for number in range(len(handle.leaving.chunks))]

    def _admission(self, admission: Admission) -> tuple[np.ndarray, ...]:
        return admission_arrays(admission, self.config.seed, self.vocab)

    def _adoption(self, slot: int, group: int, pages: Sequence[int]) -> tuple[np.ndarray, ...]:
        return adoption_arrays(slot, group, pages, self.sizes.table_width)

    def _entering(self, plan: StepPlan) -> list[StepPlan]:
        return [plan, *list(self._flight)[: self.config.mesh.spp - 1]]

    def _compile(self, report: Report) -> ExecutableTable:
        buckets = self.programs.buckets
        report(f"compiling {len(buckets)} shapes (decodes+prompt tokens): {', '.join(map(str, buckets))}")
        lower = {bucket: partial(self.programs.lower, bucket) for bucket in buckets}
        threads = min(len(buckets), os.cpu_count() or 1)
        done = count(1)

        def tell(bucket: Bucket, made: Compiled) -> None:
            where = " (from the cache)" if made.cached else ""
            report(f"compiled {next(done)}/{len(buckets)}: {bucket} in {made.seconds:.1f} s{where}")

        return ExecutableTable.compile(lower, threads, tell, self.programs.compiler_options)
