"""The tick: one program in which every stage embeds or receives, runs its layers, hands on, and all sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array, lax

from medha_jax.attention import Attention, AttentionWork, KernelWork, Launch, Pool, Tiles, merge, pack, values_of
from medha_jax.mesh import (
    embed_tokens,
    from_last_stage,
    gather_groups,
    gather_vocabulary,
    stage_index,
    stage_share,
    sum_over_tensor,
    to_next_stage,
)
from medha_jax.models import final_logits, layer_graph, rotary_angles
from medha_jax.runtime.plan_layout import PlanLayout
from medha_jax.runtime.sampler import Sampled, sample
from medha_jax.runtime.state import DeviceState, note_inputs, note_outputs
from medha_jax.specs.buckets import Bucket
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture

Tick = Callable[[Mapping[str, Array], DeviceState, Array], tuple[DeviceState, Sampled]]
Carry = tuple[Array, Pool]  # hidden states and the KV pool
Plan = Mapping[str, Array]
LAYERS = "layers."


@dataclasses.dataclass(frozen=True)
class Program:
    """What one compiled tick is for; `largest` is the bucket that the stage register is laid out for."""

    attention: Attention
    arch: Architecture
    layout: Layout
    plan: PlanLayout
    largest: Bucket
    keep_logits: bool


def build_tick(program: Program, dtype: jnp.dtype) -> Tick:
    """Make the function of one bucket: `(parameters, state, plans [spp, 1, fields]) -> (state, sampled)`.

    It runs under `shard_map` and sees one device's part of everything; arrays of a group or stage keep a leading
    axis of one.
    """
    arch, layout, bucket, attention = program.arch, program.layout, program.plan.bucket, program.attention
    merge_layer = layer_graph(arch, dtype)

    def tick(parameters: Mapping[str, Array], state: DeviceState, plans: Array) -> tuple[DeviceState, Sampled]:
        stage = stage_index() if layout.spp > 1 else 0
        entering, mine, leaving = (_fields(program.plan, plans[at, 0]) for at in (0, stage, layout.spp - 1))
        updated = entering["update_slot"], entering["update_index"]
        table = state.table[0].at[updated].set(entering["update_page"], mode="drop")
        last_token, slots = state.last_token[0], jax.tree.map(lambda x: x[0], state.slots)

        slot, position = mine["row_slot"], mine["row_position"]
        # rules that follow the length see the whole prompt from its first chunk on
        length = jnp.maximum(position + 1, slots.column("prompt", slot))
        angles = rotary_angles(parameters, position, length)
        launch = program.plan.launch
        work = attention_work(mine, bucket) if launch is None else kernel_work(mine, launch)

        def layer(carry: Carry, inputs: tuple[dict[str, Array], Array]) -> tuple[Carry, None]:
            x, pool = carry
            arrays, number = inputs

            def attend_here(query: Array, key: Array, value: Array) -> Array:
                nonlocal pool
                pool = attention.store(pool, number, table, key, value, work)
                out, lse = attention.attend(query, pool, number, table, work)
                return merge_shared(out, lse, bucket, layout)

            x = merge_layer(arrays)(x, angles, attend_here, sum_over_tensor)
            return (x, pool), None

        stacked = {k.removeprefix(LAYERS): v for k, v in parameters.items() if k.startswith(LAYERS)}
        tokens = jnp.where(mine["row_token"] >= 0, mine["row_token"], last_token[slot])
        x = embed_tokens(parameters["embedding"], tokens, layout)
        if layout.spp > 1:
            x = jnp.where(stage == 0, x, read_register(state.register[0, 0], program))
        # the pool is a carry: as scanned input and output it would exist twice
        (x, pool), _ = lax.scan(layer, (x, state.pool), (stacked, jnp.arange(values_of(state.pool).shape[0])))

        # the head is divided over stages too, so each of them helps with the rows that leave the last one
        rows = from_last_stage(x[leaving["sample_row"]], layout)
        head = parameters["embedding" if arch.tied_embeddings else "head"]
        logits = final_logits(rows, parameters["norm.scale"], stage_share(head, layout), arch.norm_epsilon)
        logits = gather_vocabulary(logits, layout)[:, : arch.vocab]

        token = leaving["row_token"]
        slots = note_inputs(slots, leaving["row_slot"], token, leaving["row_position"], token >= 0)
        keep = leaving["sample_keep"] > 0
        # of no slot where nobody reads the token: such rows ask for no work
        sampled_slot = jnp.where(keep, leaving["sample_slot"], last_token.shape[0])
        sampled = sample(logits, slots, sampled_slot, leaving["row_position"][leaving["sample_row"]] + 1)
        slots = note_outputs(slots, sampled_slot, sampled.token)
        register = state.register
        if layout.spp > 1:
            register = write_register(register[0, 0], to_next_stage(x, layout), program)[None, None]
        after = DeviceState(
            pool=pool,
            table=table[None],
            register=register,
            last_token=last_token.at[sampled_slot].set(sampled.token, mode="drop")[None],
            slots=jax.tree.map(lambda x: x[None], slots),
        )
        if program.keep_logits:
            sampled = dataclasses.replace(sampled, logits=logits)
        return after, jax.tree.map(lambda x: x[None], sampled)

    return tick


def _fields(layout: PlanLayout, flat: Array) -> Plan:
    return {name: jnp.asarray(part) for name, part in layout.views(flat).items()}


def merge_shared(out: Array, lse: Array, bucket: Bucket, layout: Layout) -> Array:
    """Merge the groups' partial attention of the shared rows; private rows are complete where they are."""
    if layout.kvp == 1 or not bucket.shared.rows:
        return out
    decode, prefill = (slice(at, at + n) for at, n in zip(bucket.starts(0), _sizes(bucket), strict=True))
    packed = pack(jnp.concatenate([out[decode], out[prefill]]), jnp.concatenate([lse[decode], lse[prefill]]))
    merged = merge(gather_groups(packed, layout))
    return out.at[decode].set(merged[: bucket.shared.decode]).at[prefill].set(merged[bucket.shared.decode :])


def _sizes(bucket: Bucket) -> tuple[int, int]:
    return bucket.shared.decode, bucket.shared.prefill


def read_register(register: Array, program: Program) -> Array:
    """The rows of this tick's bucket out of the stage register, which is laid out for the largest one."""
    return jnp.concatenate([register[there] for _, there in program.plan.bucket.slices(program.largest)])


def write_register(register: Array, x: Array, program: Program) -> Array:
    """Put the rows of this tick's bucket where the next tick, of whatever bucket, looks for them."""
    for here, there in program.plan.bucket.slices(program.largest):
        register = register.at[there].set(x[here])
    return register


def attention_work(plan: Plan, bucket: Bucket) -> AttentionWork:
    """The attention's view of a plan."""
    names = ("slot", "row", "start", "count", "limit", "stored", "used")
    tiles = tuple(Tiles(**{name: plan[f"tile{size}_{name}"] for name in names}, size=size) for size in bucket.tiles)
    return AttentionWork(
        # padding has a slot number beyond the table; it sees nothing, so any slot will do
        decode_slots=jnp.where(plan["decode_length"] > 0, plan["row_slot"][: bucket.decodes], 0),
        decode_lengths=plan["decode_length"],
        write_row=plan["write_row"],
        writes=plan["writes"],
        tiles=tiles,
    )


def kernel_work(plan: Plan, launch: Launch) -> KernelWork:
    """The attention kernels' view of a plan."""
    return KernelWork(plan["item"], plan["merge"], plan["row_slot"], plan["write_position"], launch)
