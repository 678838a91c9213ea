"""The mesh executor: owns the device state and runs one compiled tick for each plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from medha_jax.attention import BLOCK_TOKENS
from medha_jax.config import RuntimeConfig
from medha_jax.kv.allocator import pages_for
from medha_jax.mesh import parameter_spec, pool_spec, replicated
from medha_jax.models import Architecture, parameter_specs
from medha_jax.plan import SamplingParams, StepPlan
from medha_jax.runtime.buckets import Bucket, PlanLayout, all_buckets
from medha_jax.runtime.executables import ExecutableTable, use_compilation_cache
from medha_jax.runtime.packing import pack, split_plan
from medha_jax.runtime.sampler import Sampled
from medha_jax.runtime.state import DeviceState, SlotState, admit, empty_slots, slot_settings
from medha_jax.runtime.tick import build_tick

Report = Callable[[str], Any]


@dataclass(frozen=True)
class TokenResult:
    """What a tick gave for one chunk of its plan; `top` is sorted, most likely first."""

    token: int
    finite: bool
    logprob: float
    top: tuple[tuple[int, float], ...]
    logits: np.ndarray


@dataclass(frozen=True)
class TickHandle:
    """A tick that was dispatched: its plan and the device arrays that its results will be in."""

    plan: StepPlan
    bucket: Bucket
    sampled: Sampled


class MeshExecutor:
    """Runs plans on a mesh of devices; the only owner of the device state.

    Args:
        config: sizes and settings.
        arch: the model.
        parameters: from `checkpoints`, placed as `parameter_shardings` says.
        mesh: the devices.
        report: told what start-up does, a line at a time.
    """

    def __init__(
        self, config: RuntimeConfig, arch: Architecture, parameters: Mapping[str, Array], mesh: Mesh, report: Report
    ) -> None:
        self.config = config
        self.arch = arch
        self.context = min(config.max_context or arch.context, arch.context)
        self.pages = pages_for(config.pool_tokens or self.context, config.page_size)
        self._parameters = dict(parameters)
        self._mesh = mesh
        self._dtype = self._parameters["embedding"].dtype
        self._replicated = NamedSharding(mesh, replicated())
        use_compilation_cache(config.compilation_cache)
        self._table = self._compile(report)
        self._admit = jax.jit(admit, donate_argnums=0, out_shardings=self._replicated)
        make_state = jax.jit(self._empty_state, out_shardings=self._state_sharding())
        self._state = make_state()
        # compiled here, not at the first request
        self.admit(0, SamplingParams(), 0, ())

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The shapes that were compiled."""
        return self._table.buckets

    @property
    def pool_bytes(self) -> int:
        """Bytes of the KV pool on all devices."""
        return int(self._state.pool.nbytes)

    @property
    def pool_shape(self) -> tuple[int, ...]:
        """Shape of the KV pool `[layers, 2, pages, kv_heads, page, head_dim]` on all devices."""
        return tuple(self._state.pool.shape)

    def program(self, bucket: Bucket) -> jax.stages.Compiled:
        """The compiled tick of a shape, for those who want to read it."""
        return self._table.compiled(bucket)

    def admit(self, slot: int, sampling: SamplingParams, prompt: int, end_tokens: Sequence[int]) -> None:
        """Give `slot` to a new request with `prompt` tokens; `end_tokens` are held back before its min_tokens."""
        settings = slot_settings(sampling, self.config.seed, prompt, end_tokens)
        slots = self._admit(self._state.slots, np.int32(slot), *settings)
        self._state = DeviceState(self._state.pool, self._state.table, self._state.last_token, slots)

    def submit(self, plan: StepPlan) -> TickHandle:
        """Dispatch one tick.

        Raises:
            UnknownShapeError: the plan is larger than every compiled shape.
        """
        config = self.config
        bucket, flat = pack(plan, config.buckets, config.page_size, config.slots)
        self._state, sampled = self._table.compiled(bucket)(self._parameters, self._state, flat)
        return TickHandle(plan, bucket, sampled)

    def collect(self, handle: TickHandle) -> list[TokenResult]:
        """Wait for a tick; one result a chunk, in plan order. Only those of `last` chunks are a request's tokens."""
        got = jax.device_get(handle.sampled)
        single, chunks = split_plan(handle.plan)
        place = {id(chunk): row for row, chunk in enumerate(single)}
        place.update({id(chunk): handle.bucket.decode + row for row, chunk in enumerate(chunks)})

        def result(row: int) -> TokenResult:
            top = zip(got.top_token[row].tolist(), got.top_logprob[row].tolist(), strict=True)
            return TokenResult(
                int(got.token[row]), bool(got.finite[row]), float(got.logprob[row]), tuple(top), got.logits[row]
            )

        return [result(place[id(chunk)]) for chunk in handle.plan.chunks]

    def _compile(self, report: Report) -> ExecutableTable:
        buckets = all_buckets(self.config.buckets)
        report(f"compiling {len(buckets)} shapes (decodes+prompt tokens): {', '.join(map(str, buckets))}")
        lower = {bucket: partial(self._lower, bucket) for bucket in buckets}
        threads = min(len(buckets), os.cpu_count() or 1)
        return ExecutableTable.compile(lower, threads, lambda b, s: report(f"compiled {b} in {s:.1f} s"))

    def _lower(self, bucket: Bucket) -> jax.stages.Lowered:
        layout = PlanLayout(bucket, self.config.page_size)
        tick = build_tick(self.arch, self._dtype, layout, self.config.keep_logits)
        axes = {name: spec.axes for name, spec in parameter_specs(self.arch, self._dtype).items()}
        state = self._state_specs()
        mapped = jax.shard_map(
            tick,
            mesh=self._mesh,
            in_specs=({name: parameter_spec(axes[name]) for name in self._parameters}, state, replicated()),
            out_specs=(state, replicated()),
            check_vma=False,
        )
        shapes = jax.eval_shape(self._empty_state)
        placed = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self._state_sharding()
        )
        flat = jax.ShapeDtypeStruct((layout.size,), jnp.int32, sharding=self._replicated)
        return jax.jit(mapped, donate_argnums=1).lower(self._parameters, placed, flat)

    def _empty_state(self) -> DeviceState:
        arch, config = self.arch, self.config
        block = max(1, BLOCK_TOKENS // config.page_size)
        table_width = -(-pages_for(self.context, config.page_size) // block) * block
        pool = (arch.layers, 2, self.pages, arch.kv_heads, config.page_size, arch.head_dim)
        return DeviceState(
            pool=jnp.zeros(pool, self._dtype),
            table=jnp.zeros((config.slots, table_width), jnp.int32),
            last_token=jnp.zeros(config.slots, jnp.int32),
            slots=empty_slots(config.slots, arch.vocab),
        )

    def _state_specs(self) -> DeviceState:
        whole = replicated()
        return DeviceState(pool_spec(), whole, whole, SlotState(whole, whole, whole, whole))  # type: ignore[arg-type]

    def _state_sharding(self) -> Any:
        return jax.tree.map(partial(NamedSharding, self._mesh), self._state_specs())
