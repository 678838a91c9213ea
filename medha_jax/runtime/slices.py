"""The slice: the program that runs some layers of every stage for prompt chunks, and lets their rows rest.

The rows rest in `DeviceState.held` until the next slice. Ordinary ticks may run in between; they never touch it.

    round       stage 0                  stage 1
      n         chunk B, layers 0..k ─held─▶ k..2k ─held─▶ … ─┐   chunk A, the same layers
      n+1       chunk C                                     └─▶   chunk B

One slice on one device, whose stage holds `mine` of the chunks:

    receive         embedded tokens (stage 0 at the round's beginning), else the held rows
    run_layers      layers `[first, past)` of the stage: keys and values into the pool, attention over it
    note_inputs     at the round's end, the prompt tokens of the chunk that is done, for penalties
    hold            the rows; at the round's end, those of the previous stage
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array, lax

from medha_jax.attention import values_of
from medha_jax.mesh import embed_tokens, stage_index, to_next_stage
from medha_jax.runtime.state import DeviceState, note_inputs
from medha_jax.runtime.tick import (
    Carry,
    LayerFunction,
    Parameters,
    Program,
    divided,
    finite_samples,
    joined,
    kept_hidden,
    layer_function,
    rows_of,
    run_unrolled,
    stacked_layers,
    with_pages,
    with_rows,
)

SliceOutput = tuple[Array, Array | None]
SliceFunction = Callable[[Parameters, DeviceState, Array, Array], tuple[DeviceState, SliceOutput]]


def build_slice(program: Program, length: int | None) -> SliceFunction:
    """Make the function of one shape: `(parameters, state, plans [spp, 1, fields], bounds) -> (state, output)`.

    It runs under `shard_map` and sees one device's part of each array, as the tick does.

    Args:
        program: its bucket has prompt rows only.
        length: layers of the slice, whose matrices are those that are apart; None if `bounds` alone says how many.

    `bounds` is int32 `[2]`: first layer, and the layer after the last one. `output` is `done`, and hidden states as of
    `tick.kept_hidden`. `done` `[1, 1, samples, 1]` says of each chunk of this stage whether all of its rows are finite;
    the host waits for it, because the state itself is donated to the next program.
    """
    last = program.layout.spp - 1

    def slice_(
        parameters: Parameters, state: DeviceState, plans: Array, bounds: Array
    ) -> tuple[DeviceState, SliceOutput]:
        stage = stage_index() if last else 0
        entering, mine, leaving = (program.plan.fields(plans[at, 0]) for at in (0, stage, last))
        slots = jax.tree.map(lambda x: x[0], state.slots)
        begins, ends = bounds[0] == 0, bounds[1] == values_of(state.pool).shape[0]
        table = with_pages(state.table[0], entering)

        embedded = embed_tokens(parameters["embedding"], mine["row_token"], program.layout)
        x = jnp.where((stage == 0) & begins, embedded, rows_of(program, state.held))
        run = layer_function(program, parameters, table, mine, slots)
        carry = divided(program, x), state.pool
        if length is not None:
            first = 0 if length == values_of(state.pool).shape[0] else bounds[0]
            parts, pool = run_unrolled(run, parameters, carry, first, length)
        else:
            parts, pool = run_looped(run, stacked_layers(parameters), carry, bounds)
        x = joined(program, parts)

        given = jnp.broadcast_to(ends, x.shape[:1])
        noted = note_inputs(slots, leaving["row_slot"], leaving["row_token"], leaving["row_position"], given)
        # Every slice sends the rows, because a collective in a branch may deadlock.
        held = jnp.where(ends, to_next_stage(x, program.layout), x)
        after = DeviceState(
            pool=pool,
            table=table[None],
            register=state.register,
            held=with_rows(program, state.held, held),
            last_token=state.last_token,
            slots=jax.tree.map(lambda x: x[None], noted),
        )
        return after, (finite_samples(x, mine)[None, None, :, None], kept_hidden(program, x))

    return slice_


def run_looped(run: LayerFunction, stacked: Mapping[str, Array], carry: Carry, bounds: Array) -> Carry:
    """Run layers `[bounds[0], bounds[1])` in a loop."""

    def layer(number: Array, carry: Carry) -> Carry:
        arrays = {name: lax.dynamic_index_in_dim(array, number, keepdims=False) for name, array in stacked.items()}
        return run(carry, arrays, number)

    after: Carry = lax.fori_loop(bounds[0], bounds[1], layer, carry)
    return after
