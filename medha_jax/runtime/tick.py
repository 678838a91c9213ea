"""The tick: one program that embeds, runs every layer, writes KV, attends and samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import Array, lax

from medha_jax.attention import AttentionWork, Tiles, attend, store
from medha_jax.mesh import sum_over_tensor
from medha_jax.models import Architecture, final_logits, layer_graph, rotary_angles
from medha_jax.runtime.buckets import PlanLayout
from medha_jax.runtime.sampler import Sampled, sample
from medha_jax.runtime.state import DeviceState, note_inputs, note_outputs

Tick = Callable[[Mapping[str, Array], DeviceState, Array], tuple[DeviceState, Sampled]]
Carry = tuple[Array, Array]  # hidden states and the KV pool
LAYERS = "layers."


def build_tick(arch: Architecture, dtype: jnp.dtype, layout: PlanLayout, keep_logits: bool) -> Tick:
    """Make the function of one bucket: `(parameters, state, flat plan) -> (state, sampled)`, to run under `shard_map`.

    Args:
        arch: the model.
        dtype: of weights and activations.
        layout: where the plan's fields lie in the flat array.
        keep_logits: return the logits of sampled rows too.
    """
    merge = layer_graph(arch, dtype)

    def tick(parameters: Mapping[str, Array], state: DeviceState, flat: Array) -> tuple[DeviceState, Sampled]:
        plan = {name: jnp.asarray(part) for name, part in layout.views(flat).items()}
        updated = plan["update_slot"], plan["update_index"]
        table = state.table.at[updated].set(plan["update_page"], mode="drop")
        slot, position = plan["row_slot"], plan["row_position"]
        given = plan["row_token"] >= 0
        tokens = jnp.where(given, plan["row_token"], state.last_token[slot])
        slots = note_inputs(state.slots, slot, tokens, position, given)

        # rules that follow the length see the whole prompt from its first chunk on
        length = jnp.maximum(position + 1, slots.column("prompt", slot))
        angles = rotary_angles(arch.rope, arch.head_dim, position, length)
        work = attention_work(plan, layout)

        def layer(carry: Carry, inputs: tuple[dict[str, Array], Array]) -> tuple[Carry, None]:
            x, pool = carry
            arrays, number = inputs

            def attend_here(query: Array, key: Array, value: Array) -> Array:
                nonlocal pool
                pool = store(pool, number, table, key, value, work)
                return attend(query, pool, number, table, work)[0]

            x = merge(arrays)(x, angles, attend_here, sum_over_tensor)
            return (x, pool), None

        stacked = {k.removeprefix(LAYERS): v for k, v in parameters.items() if k.startswith(LAYERS)}
        numbers = jnp.arange(state.pool.shape[0])
        # the pool is a carry: as scanned input and output it would exist twice
        (x, pool), _ = lax.scan(layer, (parameters["embedding"][tokens], state.pool), (stacked, numbers))

        rows, sampled_slot = plan["sample_row"], plan["sample_slot"]
        logits = final_logits(arch, parameters, x[rows])
        sampled = sample(logits, slots, sampled_slot, position[rows] + 1)
        keep = plan["sample_keep"] > 0
        target = jnp.where(keep, sampled_slot, state.last_token.shape[0])
        after = DeviceState(
            pool=pool,
            table=table,
            last_token=state.last_token.at[target].set(sampled.token, mode="drop"),
            slots=note_outputs(slots, sampled_slot, sampled.token, keep),
        )
        return after, dataclasses.replace(sampled, logits=logits) if keep_logits else sampled

    return tick


def attention_work(plan: Mapping[str, Array], layout: PlanLayout) -> AttentionWork:
    """The attention's view of a plan."""
    rows = layout.bucket.decode
    real = jnp.arange(rows) < plan["decodes"]
    tiles = tuple(
        Tiles(**{name: plan[f"tile{size}_{name}"] for name in ("slot", "row", "start", "count", "used")}, size=size)
        for size in layout.bucket.tiles
    )
    return AttentionWork(
        decode_slots=jnp.where(real, plan["row_slot"][:rows], 0),
        decode_lengths=jnp.where(real, plan["row_position"][:rows] + 1, 0),
        decodes=plan["decodes"],
        tiles=tiles,
    )
