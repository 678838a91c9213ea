"""The mesh executor: owns the device state and runs the compiled ticks and slices."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from medha_jax.config import RuntimeConfig
from medha_jax.mesh import plan_spec
from medha_jax.plan import (
    NO_HOST,
    Admission,
    PageCopy,
    SamplingParams,
    ScoreQuery,
    Slice,
    StepPlan,
    TokenResult,
)
from medha_jax.runtime.host_pool import HostPool
from medha_jax.runtime.packing import EMPTY, bucket_for, pack, slice_bucket_for
from medha_jax.runtime.plan_columns import PlanColumns
from medha_jax.runtime.programs import Programs
from medha_jax.runtime.prompt_scores import PromptScorer, read_scores
from medha_jax.runtime.shape_compiler import Report, ShapeCompiler
from medha_jax.runtime.shapes import SliceShape
from medha_jax.runtime.slot_masks import SlotMasks
from medha_jax.runtime.state import DeviceState, admission_arrays, admit, adopt, adoption_arrays
from medha_jax.runtime.tick_results import SliceHandle, TickHandle, local_results, slice_results
from medha_jax.specs.buckets import Bucket, UnknownShapeError
from medha_jax.specs.model import Architecture
from medha_jax.specs.shape_grid import ShapeGrid


@dataclasses.dataclass(frozen=True)
class PackedStages:
    """The plans of a round of slices, on the devices: a round packs once, and again if a chunk was dropped."""

    stages: tuple[StepPlan, ...]
    plans: Array


class MeshExecutor:
    """Runs plans on a mesh of devices; the only owner of the device state.

    Args:
        parameters: placed on the mesh by `place_parameters`.
        report: called with each line of start-up progress, perhaps from another thread.
        complete: compile every shape at once. If not, only the fewest that hold every plan; `compile_rest` does the
            others, and `grow` begins to use them.

    Raises:
        LayoutError: the model cannot be divided over the mesh.
        LaunchError: the configured attention cannot run on the mesh.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        arch: Architecture,
        parameters: Mapping[str, Array],
        mesh: Mesh,
        report: Report,
        complete: bool = True,
    ) -> None:
        self.config = config
        self.programs = Programs(config, arch, parameters["embedding"].dtype, mesh)
        self.sizes, self.vocab = self.programs.sizes, arch.vocab
        self.prefix_cacheable = not arch.rope.follows_length
        self._on_cpu = on_cpu = mesh.devices.flat[0].platform == "cpu"
        # Planning one tick ahead keeps an accelerator busy. CPU devices share the host's cores and gain nothing.
        self.ahead = 0 if on_cpu else 1
        # With few cores, two programs at once on several CPU devices deadlock in their collectives.
        self._one_at_a_time = on_cpu and mesh.devices.size > 1
        self._parameters = self.programs.arguments(parameters)
        self._of_layers: dict[tuple[int, int], Mapping[str, Array]] = {}  # of slices, by their first and last layer
        self._flight = deque([PlanColumns.of(EMPTY)] * config.mesh.spp, config.mesh.spp)
        self._round: PackedStages | None = None
        shardings = jax.tree.map(lambda shape: shape.sharding, self.programs.state_shapes)
        self._make_state = jax.jit(self.programs.empty_state, out_shardings=shardings)
        grids = (self.programs.grid,) if complete else self.programs.grid.growth
        self._compiler = ShapeCompiler(self.programs, grids, report)
        with ThreadPoolExecutor(1, "empty state") as aside:
            # On CPUs the first touch of a pool of some GiB takes seconds. Meanwhile programs are loaded. An accelerator
            # fills it fast, and may need the memory to choose programs.
            empty = aside.submit(self._emptied) if on_cpu else None
            self.executables = self._compiler.compile_first()
            self._state = self._emptied() if empty is None else empty.result()
        self._use(grids[0])
        nobody = (self._state.slots, *self._admission(Admission(0, SamplingParams(temperature=0), 0)))
        self._admit = jax.jit(admit, donate_argnums=0, out_shardings=shardings.slots).lower(*nobody).compile()
        nothing = (self._state.table, *self._adoption(0, 0, ()))
        self._adopt = jax.jit(adopt, donate_argnums=0, out_shardings=shardings.table).lower(*nothing).compile()
        self._masks = SlotMasks(self._state.slots, shardings.slots)
        self._scorer = PromptScorer(self.programs, self._parameters) if config.prompt_logprobs else None
        self.host, self._host_pool, self._lost = NO_HOST, None, False
        if config.host_kv_gib:
            self._host_pool = HostPool(self.programs, config.host_kv_gib)
            pool, self.host = self._host_pool.measured(self._state.pool)
            self._state = dataclasses.replace(self._state, pool=pool)
            page_us = self.host.page_s * 1e6
            report(f"host tier: {self.host.places:,} pages of each group; a page comes back in {page_us:,.0f} us")

    def compile_rest(self) -> None:
        """Begin to compile the shapes that are still missing, in another thread. Call it once at most."""
        self._compiler.start()

    def grow(self) -> ShapeGrid | None:
        """Begin to use shapes that were compiled since; returns the new grid, None if there is nothing new.

        Call it between two ticks. Plans in flight stay valid: the register has the rows of the largest shape.
        """
        grown = self._compiler.take()
        if grown is None:
            return None
        self.executables.add(grown.programs)
        self._use(grown.grid)
        return grown.grid

    def stop_compiling(self) -> None:
        """Compile no further shapes; any thread may call it."""
        self._compiler.stop()

    @property
    def slice_lengths(self) -> tuple[int, ...]:
        """Numbers of layers that a slice may have, increasing; the last one is all layers of a stage."""
        return self.programs.slice_lengths

    def usable(self) -> bool:
        """Whether the device state survived: a failed program destroys its donated arguments. Waits for ticks."""
        arrays = jax.tree.leaves(self._state)
        if self._lost:
            return False
        try:
            jax.block_until_ready(arrays)
        except RuntimeError:
            return False
        return not any(array.is_deleted() for array in arrays)

    def renew(self) -> None:
        """Start again with an empty state and no plans in flight, after an error destroyed the old state."""
        for array in jax.tree.leaves(self._state):
            if not array.is_deleted():
                array.delete()  # memory does not hold two pools
        self._flight.extend([PlanColumns.of(EMPTY)] * self.config.mesh.spp)
        self._lost = False
        if self._host_pool is not None:
            self._host_pool.forget()
        self._state = self._emptied()

    def admit(self, admission: Admission) -> None:
        """Give a slot to a request on every group.

        Raises:
            ValueError: the slot does not exist.
        """
        self._check_slots([admission.slot])
        slots = self._admit(self._state.slots, *self._admission(admission))
        if self._one_at_a_time:
            jax.block_until_ready(slots)
        self._state = dataclasses.replace(self._state, slots=slots)

    def set_masks(self, slots: Sequence[int], masks: np.ndarray) -> None:
        """Let slots sample the tokens of `masks` only, `[slots, mask_words]`, until the next mask or admission.

        Raises:
            ValueError: a slot does not exist.
        """
        self._check_slots(slots)
        written = self._masks.write(self._state.slots, slots, masks)
        if self._one_at_a_time:
            jax.block_until_ready(written)
        self._state = dataclasses.replace(self._state, slots=written)

    def adopt(self, slot: int, group: int, pages: Sequence[int]) -> None:
        """Give an admitted request pages of `group` that already hold the KV of its prompt's first tokens, in order.

        Call it before the request's first chunk, which starts after those tokens.

        Raises:
            ValueError: the slot or group does not exist, or there are more pages than a request can have.
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

    def copy_pages(self, copies: Sequence[PageCopy]) -> None:
        """Copy KV pages to and from host memory, in this order; after an error the state counts as lost.

        Raises:
            ValueError: there is no host tier.
        """
        if self._host_pool is None:
            raise ValueError("there is no host memory for KV pages")
        try:
            pool = self._host_pool.run(self._state.pool, copies)
            if self._on_cpu:
                jax.block_until_ready(pool)
        except Exception:
            self._lost = True
            raise
        self._state = dataclasses.replace(self._state, pool=pool)

    def bucket(self, plan: StepPlan) -> Bucket:
        """The shape of the tick in which `plan` would enter.

        Raises:
            UnknownShapeError: the plans in flight are larger than every compiled shape.
        """
        return bucket_for(self._entering(plan), self._geometry)

    def submit(self, plan: StepPlan) -> TickHandle:
        """Dispatch one tick, in which `plan` enters the first stage and an earlier one leaves the last.

        Raises:
            UnknownShapeError: the plans in flight are larger than every compiled shape; nothing was dispatched.
        """
        flight = self._entering(plan)
        bucket = bucket_for(flight, self._geometry)
        packed = pack(flight, self.programs.plan_layouts[bucket], self._geometry)
        # a program over several processes cannot take a divided host array
        plans = packed if jax.process_count() == 1 else self.programs.put(packed, plan_spec())
        self._state, output = self.executables.compiled(bucket)(self._parameters, self._state, plans)
        self._flight.appendleft(flight[0])
        if self._one_at_a_time:
            jax.block_until_ready(output)
        return TickHandle(flight[-1], bucket, output)

    def slice_shape(self, work: Slice) -> SliceShape:
        """The shape of a slice.

        Raises:
            UnknownShapeError: its layers or its chunks are no compiled shape's.
        """
        length, lengths = work.past - work.first, self.slice_lengths
        if length not in lengths or not 0 <= work.first < work.past <= lengths[-1]:
            allowed = ", ".join(map(str, lengths))
            raise UnknownShapeError(
                f"a slice of layers {work.first} to {work.past}; a stage has {lengths[-1]}, slices may have {allowed}"
            )
        bucket = slice_bucket_for([PlanColumns.of(plan) for plan in work.stages], self._geometry)
        return SliceShape(bucket, length if self.programs.slices[0].length else None)

    def submit_slice(self, work: Slice) -> SliceHandle:
        """Dispatch some layers of every stage for the chunks that the stages hold.

        Raises:
            UnknownShapeError: its layers or its chunks are no compiled shape's; nothing was dispatched.
        """
        shape = self.slice_shape(work)
        program = self.executables.compiled(shape)
        if self._round is None or self._round.stages != work.stages:
            stages = [PlanColumns.of(plan) for plan in work.stages]
            packed = pack(stages, self.programs.plan_layouts[shape.bucket], self._geometry)
            self._round = PackedStages(work.stages, self.programs.put(packed, plan_spec()))
        bounds = np.array([work.first, work.past], np.int32)
        if (taken := self._of_layers.get((work.first, work.past))) is None:
            taken = self._of_layers[work.first, work.past] = self.programs.taken(self._parameters, shape, work.first)
        self._state, (done, hidden) = program(taken, self._state, self._round.plans, bounds)
        if self._one_at_a_time:
            jax.block_until_ready(done)
        leaving = work.stages[-1] if work.past == self.slice_lengths[-1] else EMPTY
        return SliceHandle(leaving, shape.bucket, done, hidden)

    def score(self, handle: TickHandle | SliceHandle, queries: Mapping[int, ScoreQuery]) -> TickHandle | SliceHandle:
        """Ask about the tokens that follow the rows of chunks that leave, by their place in the plan.

        Call it once, before anything else is submitted; `collect` of the returned handle has the answers.

        Raises:
            ValueError: the runtime does not score prompts.
        """
        if self._scorer is None:
            raise ValueError("the runtime was not compiled to score prompts")
        scoring = self._scorer.dispatch(handle, queries)
        if self._one_at_a_time:
            jax.block_until_ready(scoring.answers)
        return dataclasses.replace(handle, scoring=scoring)

    def collect(self, handle: TickHandle | SliceHandle) -> list[TokenResult]:
        """Wait for a tick or slice; one result per chunk that left the last stage in it, in order.

        For ticks this process must hold every group. Results of slices have no token.
        """
        if isinstance(handle, SliceHandle):
            results = slice_results(handle)
        else:
            found = local_results(handle)
            results = [found[number] for number in range(len(handle.leaving.chunks))]
        if handle.scoring is not None:
            starts = {place: handle.leaving.chunks[place].start for place in handle.scoring.queries}
            for place, scores in read_scores(handle.scoring, starts).items():
                results[place] = results[place]._replace(scores=scores)
        return results

    def _check_slots(self, slots: Sequence[int]) -> None:
        """Refuse a number that the programs would count from the last slot, or leave out."""
        bad = [slot for slot in slots if not 0 <= slot < self.config.slots]
        if bad:
            raise ValueError(f"there is no slot {bad[0]}; there are {self.config.slots}")

    def _emptied(self) -> DeviceState:
        state: DeviceState = jax.block_until_ready(self._make_state())
        return state

    def _admission(self, admission: Admission) -> tuple[np.ndarray, ...]:
        return admission_arrays(admission, self.vocab)

    def _adoption(self, slot: int, group: int, pages: Sequence[int]) -> tuple[np.ndarray, ...]:
        return adoption_arrays(slot, group, pages, self.sizes.table_width)

    def _entering(self, plan: StepPlan) -> list[PlanColumns]:
        return [PlanColumns.of(plan), *list(self._flight)[: self.config.mesh.spp - 1]]

    def _use(self, grid: ShapeGrid) -> None:
        self.grid = grid  # the shapes that plans take now
        self._geometry = dataclasses.replace(self.programs.geometry, own=grid.own, shared=grid.shared)
        self._round = None  # it was packed for another shape
