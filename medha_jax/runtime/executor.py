"""The mesh executor: owns the device state and runs one compiled tick for each plan."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from medha_jax.attention import Attention, values_of
from medha_jax.config import RuntimeConfig
from medha_jax.mesh import per_group
from medha_jax.plan import SamplingParams, StepPlan
from medha_jax.runtime.executables import Compiled, ExecutableTable, use_compilation_cache
from medha_jax.runtime.packing import EMPTY, bucket_for, pack, places
from medha_jax.runtime.programs import Programs
from medha_jax.runtime.sampler import Sampled
from medha_jax.runtime.state import admit, adopt, slot_settings
from medha_jax.specs.buckets import Bucket
from medha_jax.specs.model import Architecture

Report = Callable[[str], Any]


@dataclass(frozen=True)
class TokenResult:
    """What a tick gave for one chunk of its plan; `top` is sorted, most likely first.

    Only that of a `last` chunk is a request's token; in a plan without one, all are `NO_TOKEN`.
    """

    token: int
    finite: bool
    logprob: float
    top: tuple[tuple[int, float], ...]
    logits: np.ndarray


NO_TOKEN = TokenResult(0, True, 0.0, (), np.zeros(0, np.float32))


@dataclass(frozen=True)
class TickHandle:
    """A tick that was dispatched: the plan that leaves the last stage in it, and where its results will be."""

    leaving: StepPlan
    bucket: Bucket
    sampled: Sampled


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
        self.arch = arch
        self._programs = Programs(config, arch, parameters["embedding"].dtype, mesh)
        self.layout, self.sizes = self._programs.layout, self._programs.sizes
        self._parameters = self._programs.arguments(parameters)
        # with few cores, a second program on several CPU devices deadlocks in its collectives
        self._on_cpu = mesh.devices.flat[0].platform == "cpu"
        self._one_at_a_time = self._on_cpu and self.layout.devices > 1
        self._flight = deque([EMPTY] * self.layout.spp, self.layout.spp)
        use_compilation_cache(config.compilation_cache)
        self._table = self._compile(report)
        shardings = jax.tree.map(lambda shape: shape.sharding, self._programs.state_shapes)
        self._make_state = jax.jit(self._programs.empty_state, out_shardings=shardings)
        self._state = jax.block_until_ready(self._make_state())
        nobody = (self._state.slots, *self._admission(0, SamplingParams(), 0, (), (), ()))
        self._admit = jax.jit(admit, donate_argnums=0, out_shardings=shardings.slots).lower(*nobody).compile()
        nothing = (self._state.table, *self._adoption(0, 0, ()))
        self._adopt = jax.jit(adopt, donate_argnums=0, out_shardings=shardings.table).lower(*nothing).compile()

    @property
    def context(self) -> int:
        """Most tokens of one request, prompt and output."""
        return self.sizes.context

    @property
    def pages(self) -> int:
        """Pages in each group's pool."""
        return self.sizes.pages

    @property
    def per_group(self) -> int:
        """Tokens of one request that a group holds; without bound where there is one group only."""
        return self.sizes.per_group

    @property
    def prefix_cacheable(self) -> bool:
        """Whether the KV of a prefix is the same whatever follows it."""
        return not self.arch.rope.follows_length

    @property
    def ahead(self) -> int:
        """One tick where the host would be waiting for an accelerator; CPU devices compute on the host's own cores."""
        return 0 if self._on_cpu else 1

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
        self._flight.extend([EMPTY] * self.layout.spp)
        self._state = jax.block_until_ready(self._make_state())

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The shapes that were compiled."""
        return self._table.buckets

    @property
    def attention(self) -> Attention:
        """What computes attention."""
        return self._programs.attention

    @property
    def pool_shape(self) -> tuple[int, ...]:
        """Shape of the KV pool `[layers, 2, pages, kv_heads, page, head_dim]` on all devices."""
        return tuple(values_of(self._state.pool).shape)

    @property
    def pool_bytes(self) -> int:
        """Bytes of the KV pool on all devices."""
        return int(sum(array.nbytes for array in jax.tree.leaves(self._state.pool)))

    @cached_property
    def group_processes(self) -> tuple[int, ...]:
        """For each group the process that answers for it: the lowest-numbered one that holds a copy of its results."""
        lowest = [jax.process_count()] * self.layout.kvp
        devices = self._programs.placed(per_group()).devices_indices_map((self.layout.kvp,))
        for device, (held,) in devices.items():
            process: int = device.process_index  # type: ignore[attr-defined]
            for group in range(self.layout.kvp)[held]:
                lowest[group] = min(lowest[group], process)
        return tuple(lowest)

    @property
    def in_flight(self) -> bool:
        """Whether a plan is in the pipeline and has not left it."""
        return any(plan.chunks for plan in list(self._flight)[: self.layout.spp - 1])

    def program(self, bucket: Bucket) -> jax.stages.Compiled:
        """The compiled tick of a shape, for those who want to read it."""
        return self._table.compiled(bucket)

    def admit(
        self,
        slot: int,
        sampling: SamplingParams,
        prompt: int,
        end_tokens: Sequence[int],
        prompted: Sequence[int] = (),
        generated: Sequence[int] = (),
    ) -> None:
        """Give `slot` to a request on every group.

        Args:
            slot: nobody's, or the same request's when it begins to be shared.
            sampling: its settings.
            prompt: tokens in its prompt.
            end_tokens: held back before its min_tokens.
            prompted: prompt tokens that were computed before.
            generated: tokens that it generated before.
        """
        admission = self._admission(slot, sampling, prompt, end_tokens, prompted, generated)
        slots = self._admit(self._state.slots, *admission)
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

    def _admission(
        self,
        slot: int,
        sampling: SamplingParams,
        prompt: int,
        end_tokens: Sequence[int],
        prompted: Sequence[int],
        generated: Sequence[int],
    ) -> tuple[np.ndarray, ...]:
        """What `state.admit` takes beside the state."""
        vocab = self.arch.vocab
        counts = np.bincount(np.asarray(generated, np.int64), minlength=vocab).astype(np.int32)
        seen = np.minimum(np.bincount(np.asarray(prompted, np.int64), minlength=vocab), 1).astype(np.int8)
        floats, integers = slot_settings(sampling, self.config.seed, prompt, end_tokens)
        return np.array(slot, np.int32), floats, integers, counts, seen

    def _adoption(self, slot: int, group: int, pages: Sequence[int]) -> tuple[np.ndarray, ...]:
        """What `state.adopt` takes beside the table."""
        row = np.zeros(self._state.table.shape[-1], np.int32)
        row[: len(pages)] = pages
        return np.array(slot, np.int32), np.array(group, np.int32), row

    def bucket(self, plan: StepPlan) -> Bucket:
        """The shape that a tick would have in which `plan` enters.

        Raises:
            UnknownShapeError: the plans in flight are larger than every compiled shape.
        """
        return bucket_for(self._entering(plan), self._programs.geometry)

    def submit(self, plan: StepPlan) -> TickHandle:
        """Dispatch one tick, in which `plan` enters the first stage and an earlier one leaves the last.

        Raises:
            UnknownShapeError: the plans in flight are larger than every compiled shape; nothing was dispatched.
        """
        flight, bucket = self._entering(plan), self.bucket(plan)
        packed = pack(flight, bucket, self._programs.geometry)
        plans: np.ndarray | Array = packed
        if jax.process_count() > 1:  # a program over several processes takes no host array that is divided
            sharding = self._programs.plan_shape(bucket).sharding
            plans = jax.make_array_from_callback(packed.shape, sharding, lambda index: packed[index])
        self._state, sampled = self._table.compiled(bucket)(self._parameters, self._state, plans)
        self._flight.appendleft(plan)
        if self._one_at_a_time:
            jax.block_until_ready(sampled)
        return TickHandle(flight[-1], bucket, sampled)

    def answering(self, handle: TickHandle) -> dict[int, int]:
        """The process that answers for each chunk of a tick's leaving plan, by position."""
        place = places(handle.leaving, handle.bucket)
        return {number: self.group_processes[group] for number, (group, _) in place.items()}

    def collect(self, handle: TickHandle) -> list[TokenResult]:
        """Wait for a tick; one result a chunk of its leaving plan, in order.

        Every group must lie on this process.
        """
        results = self.results(handle)
        return [results[number] for number in range(len(handle.leaving.chunks))]

    def results(self, handle: TickHandle) -> dict[int, TokenResult]:
        """Wait for a tick; the results that lie on this process's devices, by position in its leaving plan."""
        chunks = handle.leaving.chunks
        if not chunks:
            return {}
        place = places(handle.leaving, handle.bucket)
        if not any(chunk.last for chunk in chunks):  # nothing that anybody would read
            jax.block_until_ready(handle.sampled)
            here = _local_groups(handle.sampled.token)
            return {number: NO_TOKEN for number, (group, _) in place.items() if group in here}
        got = jax.device_get(jax.tree.map(_local_groups, handle.sampled))

        def result(group: int, sample: int) -> TokenResult:
            parts = (getattr(got, field.name) for field in dataclasses.fields(Sampled))
            # logits that are not kept have no elements, and so no groups
            token, finite, logprob, top_token, top_logprob, logits = (
                p[group if group in p else 0][0, sample] for p in parts
            )
            top = zip(top_token.tolist(), top_logprob.tolist(), strict=True)
            return TokenResult(int(token), bool(finite), float(logprob), tuple(top), logits)

        return {number: result(*at) for number, at in place.items() if at[0] in got.token}

    def _entering(self, plan: StepPlan) -> list[StepPlan]:
        return [plan, *list(self._flight)[: self.layout.spp - 1]]

    def _compile(self, report: Report) -> ExecutableTable:
        buckets = self._programs.buckets
        report(f"compiling {len(buckets)} shapes (decodes+prompt tokens): {', '.join(map(str, buckets))}")
        lower = {bucket: partial(self._programs.lower, bucket) for bucket in buckets}
        threads = min(len(buckets), os.cpu_count() or 1)
        done = count(1)

        def tell(bucket: Bucket, made: Compiled) -> None:
            where = " (from the cache)" if made.cached else ""
            report(f"compiled {next(done)}/{len(buckets)}: {bucket} in {made.seconds:.1f} s{where}")

        return ExecutableTable.compile(lower, threads, tell, self._programs.compiler_options)


def _local_groups(array: Array) -> dict[int, Array]:
    """The parts of a result that lie on this process's devices, by group."""
    return {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
