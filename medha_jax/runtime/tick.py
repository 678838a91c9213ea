"""The tick: the program that all devices run for one shape of plans.

Each pipeline stage computes a different plan. A plan enters the first stage and moves through the register, one stage
per tick. When it leaves the last stage, its tokens are sampled.

    tick       stage 0             stage 1             stage 2
      n        plan C ──register─▶ (n+1)
               plan B was in 0 ──▶ plan B ──register─▶ (n+1)
                                   plan A was in 1 ──▶ plan A ──▶ head, sampler (on all stages)
      n+1      plan D              plan C              plan B ──▶ head, sampler

One tick on one device, whose stage holds `mine` of the plans in flight:

    receive         tokens of `mine` through the embedding (stage 0), or hidden states from the register
    run_layers      the stage's layers: keys and values into the pool, attention over it
    sample_leaving  rows of the plan that leaves the last stage through the head; tokens into the slots
    hand_on         hidden states to the next stage's register
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array, lax

from medha_jax.attention import Attention, Pool, pack, values_of
from medha_jax.mesh import (
    embed_tokens,
    from_last_stage,
    gather_groups,
    gather_vocabulary,
    stage_index,
    sum_over_tensor,
    to_next_stage,
)
from medha_jax.models import LAYERS, Form, LayerMatrix, Parts, final_logits, in_parts, layer_graph, rotary_angles
from medha_jax.runtime.parameter_placement import head_share
from medha_jax.runtime.plan_layout import PlanLayout
from medha_jax.runtime.sampler import sample
from medha_jax.runtime.state import DeviceState, SlotState, note_inputs, note_outputs
from medha_jax.runtime.tick_results import TickOutput
from medha_jax.specs.buckets import Bucket
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture
from medha_jax.specs.sizes import GPU_ROWS

Parameters = Mapping[str, Array]
Plan = Mapping[str, Array]  # fields of `plan_layout`
Carry = tuple[Parts, Pool]  # hidden states in the form, and the pool
LayerFunction = Callable[[Carry, Mapping[str, Array], Array], Carry]
TickFunction = Callable[[Parameters, DeviceState, Array], tuple[DeviceState, TickOutput]]


@dataclasses.dataclass(frozen=True)
class Program:
    """Constants of one compiled tick or slice.

    Args:
        dtype: of weights and activations.
        form: of the placed layers.
        unrolled: layers follow one another in the program, each with its own arrays, as on GPUs; else a loop runs them.
        plan: layout of the plans; its bucket is the shape of the tick.
        largest: the bucket whose rows the register between stages has; for a slice, the rows that are held.
        keep_logits: return the logits of sampled rows.
        parts: rows that take turns in the layers: all, or two parts of them (`specs.sizes.row_parts`).
        kept_rows: return hidden states, padded to so many rows; None for none.
    """

    attention: Attention
    arch: Architecture
    dtype: jnp.dtype
    form: Form
    unrolled: bool
    layout: Layout
    plan: PlanLayout
    largest: Bucket
    keep_logits: bool
    parts: tuple[int, ...]
    kept_rows: int | None = None


def build_tick(program: Program) -> TickFunction:
    """Make the function of one bucket: `(parameters, state, plans [spp, 1, fields]) -> (state, output)`.

    It runs under `shard_map` and sees one device's part of each array; axes of groups or stages have size one.
    `plans` holds the plans in flight, in stage order.
    """
    last = program.layout.spp - 1

    def tick(parameters: Parameters, state: DeviceState, plans: Array) -> tuple[DeviceState, TickOutput]:
        stage = stage_index() if last else 0
        entering, mine, leaving = (program.plan.fields(plans[at, 0]) for at in (0, stage, last))
        last_token, slots = state.last_token[0], jax.tree.map(lambda x: x[0], state.slots)
        table = with_pages(state.table[0], entering)

        x = receive(program, parameters, state.register, mine, last_token, stage)
        x, pool = run_layers(program, parameters, x, state.pool, table, mine, slots)
        output, last_token, slots = sample_leaving(program, parameters, x, leaving, last_token, slots)
        after = DeviceState(
            pool=pool,
            table=table[None],
            register=hand_on(program, x, state.register),
            held=state.held,
            last_token=last_token[None],
            slots=jax.tree.map(lambda x: x[None], slots),
        )
        return after, dataclasses.replace(jax.tree.map(lambda x: x[None], output), hidden=kept_hidden(program, x))

    return tick


def with_pages(table: Array, entering: Plan) -> Array:
    """The page table with the entering plan's pages. Every stage has the whole table, so all stages write them."""
    return table.at[entering["update_slot"], entering["update_index"]].set(entering["update_page"], mode="drop")


def receive(
    program: Program, parameters: Parameters, register: Array, mine: Plan, last_token: Array, stage: Array | int
) -> Array:
    """Input `[rows, embed]` of this stage: embedded tokens on stage 0, else hidden states from the previous stage."""
    tokens = jnp.where(mine["row_token"] >= 0, mine["row_token"], last_token[mine["row_slot"]])
    x = embed_tokens(parameters["embedding"], tokens, program.layout)
    if program.layout.spp == 1:
        return x
    return jnp.where(stage == 0, x, rows_of(program, register))


def rows_of(program: Program, register: Array) -> Array:
    """This shape's rows `[rows, embed]` of a register, which has the rows of the largest shape."""
    return jnp.concatenate([register[0, 0, there] for _, there in program.plan.bucket.slices(program.largest)])


def with_rows(program: Program, register: Array, x: Array) -> Array:
    """A register with this shape's rows `x`, placed so that any other shape finds them."""
    rows = register[0, 0]
    for here, there in program.plan.bucket.slices(program.largest):
        # `at[there].set` leaves an unused, empty constant in the program where a shape has all rows. XLA for several
        # GPUs crashes on it.
        rows = lax.dynamic_update_slice_in_dim(rows, x[here], there.start, 0)
    return rows[None, None]


def run_layers(
    program: Program, parameters: Parameters, x: Array, pool: Pool, table: Array, mine: Plan, slots: SlotState
) -> tuple[Array, Pool]:
    """Hidden states after this stage's layers, and the pool with the new keys and values."""
    run = layer_function(program, parameters, table, mine, slots)
    count = values_of(pool).shape[0]
    if program.unrolled:
        parts, pool = run_unrolled(run, parameters, (divided(program, x), pool), 0, count)
        return joined(program, parts), pool

    def layer(carry: Carry, inputs: tuple[Mapping[str, Array], Array]) -> tuple[Carry, None]:
        return run(carry, *inputs), None

    # The pool is the scan's carry; as its input and output it would exist twice.
    inputs = stacked_layers(parameters), jnp.arange(count)
    (parts, pool), _ = lax.scan(layer, (divided(program, x), pool), inputs)
    return joined(program, parts), pool


def divided(program: Program, x: Array) -> Parts:
    """Hidden states `[rows, embed]` as layers take them."""
    return tuple(map(program.form.turned, in_parts(x, program.parts)))


def joined(program: Program, parts: Parts) -> Array:
    """Hidden states `[rows, embed]` of what layers return."""
    return jnp.concatenate([program.form.turned(x) for x in parts])


def run_unrolled(run: LayerFunction, parameters: Parameters, carry: Carry, first: int | Array, count: int) -> Carry:
    """Run `count` layers, one after the other. Theirs are the matrices that are apart, in order.

    XLA for GPUs reads a matrix in place if it is an argument of its own. Of stacked ones it would copy each layer's
    wherever the first layer is no constant.
    """
    stacked, own = stacked_layers(parameters), layers_apart(parameters)
    once = jax.jit(run)  # lowered once for the first layer and once for all others, not for each
    for nth in range(count):
        number = first + nth
        arrays = {name: array[number] for name, array in stacked.items()}
        matrices = {path: of_layers[nth] for path, of_layers in own.items()}
        carry = once(carry, {**arrays, **matrices}, jnp.asarray(number, jnp.int32))
    return carry


def stacked_layers(parameters: Parameters) -> dict[str, Array]:
    """The parameters of this stage's layers by path in a layer, `[layers, ...]` each, but for those apart."""
    prefix = f"{LAYERS}."
    found = {k.removeprefix(prefix): v for k, v in parameters.items() if k.startswith(prefix)}
    return {k: v for k, v in found.items() if not k.rpartition(".")[2].isdigit()}


def layers_apart(parameters: Parameters) -> dict[str, tuple[Array, ...]]:
    """The matrices of this stage's layers that are apart, in order of the layers, by path in a layer."""
    arrays: dict[str, dict[int, Array]] = {}
    for name, array in parameters.items():
        path, _, nth = name.removeprefix(f"{LAYERS}.").rpartition(".")
        if nth.isdigit():
            arrays.setdefault(path, {})[int(nth)] = array[0]  # without the axis of stages
    return {path: tuple(own[nth] for nth in range(len(own))) for path, own in arrays.items()}


def layer_function(
    program: Program, parameters: Parameters, table: Array, mine: Plan, slots: SlotState
) -> LayerFunction:
    """The function of one layer: `((parts, pool), its parameters, its number in the stage) -> (parts, pool)`.

    In a loop its parameters are those that are stacked; the number says which of the others.
    """
    attention, bucket, layout = program.attention, program.plan.bucket, program.layout
    position = mine["row_position"]
    # RoPE rules that depend on the length see the whole prompt's length from its first chunk on.
    length = jnp.maximum(position + 1, slots.column("prompt", mine["row_slot"]))
    angles = rotary_angles(parameters, position, length)
    work = program.plan.work.work(mine)
    merge_layer = layer_graph(program.arch, program.dtype, program.form)
    apart = {} if program.unrolled else layers_apart(parameters)

    def layer(carry: Carry, arrays: Mapping[str, Array], number: Array) -> Carry:
        parts, pool = carry

        def attend(pool: Pool, query: Array, key: Array, value: Array) -> tuple[Array, Pool]:
            query, pool = attention.store(pool, number, table, query, key, value, angles, work)
            out, lse = attention.attend(query, pool, number, table, work)
            return merge_shared(attention, out, lse, bucket, layout), pool

        matrices = {path: LayerMatrix(own, number) for path, own in apart.items()}
        return merge_layer({**arrays, **matrices})(parts, pool, attend, sum_over_tensor)

    return layer


def merge_shared(attention: Attention, out: Array, lse: Array, bucket: Bucket, layout: Layout) -> Array:
    """Merge the groups' partial attention of shared rows. Private rows are already complete on their group."""
    if layout.kvp == 1 or not bucket.shared.rows:
        return out
    shared = bucket.shared_rows
    packed = gather_groups(pack(out[shared], lse[shared]), layout)
    return attention.merge_groups(out, packed, shared.start)


def sample_leaving(
    program: Program, parameters: Parameters, x: Array, leaving: Plan, last_token: Array, slots: SlotState
) -> tuple[TickOutput, Array, SlotState]:
    """Sample the plan that leaves the last stage; returns the tokens, each slot's last token, and the slots.

    The head is divided over the stages as well, so every stage computes a part of the logits. A chunk with a row that
    is not finite gets logits that are not, whichever row is sampled.
    """
    arch, layout = program.arch, program.layout
    rows = _or_nan(finite_samples(x, leaving), x[leaving["sample_row"]])
    samples = rows.shape[0]
    if program.unrolled:
        # XLA for GPUs would pad the rows in a launch of its own; so what gathers them writes more
        rows = jnp.pad(rows, ((0, -samples % GPU_ROWS), (0, 0)))
    rows = from_last_stage(rows, layout)
    head = head_share(parameters, arch, layout)
    logits = final_logits(rows, parameters["norm.scale"], head, arch.norm_epsilon)
    logits = gather_vocabulary(logits, layout)[:samples, : arch.vocab]

    token = leaving["row_token"]
    slots = note_inputs(slots, leaving["row_slot"], token, leaving["row_position"], token >= 0)
    # Rows whose token is not read get no slot, so they request no sampling work.
    kept = jnp.where(leaving["sample_keep"] > 0, leaving["sample_slot"], last_token.shape[0])
    sampled = sample(logits, slots, kept, leaving["row_position"][leaving["sample_row"]] + 1)
    slots = note_outputs(slots, kept, sampled.token)
    last_token = last_token.at[kept].set(sampled.token, mode="drop")
    if program.keep_logits:
        sampled = dataclasses.replace(sampled, logits=logits)
    return TickOutput.of(sampled), last_token, slots


def finite_samples(x: Array, plan: Plan) -> Array:
    """Whether all rows `[rows, embed]` of each sample's chunk are finite `[samples]`.

    A row that met a value that is not finite, in whatever layer or stage, has one in its hidden state from there on.
    """
    spoiled = ~jnp.isfinite(x).all(-1)
    return ~((plan["row_slot"] == plan["sample_slot"][:, None]) & spoiled).any(-1)


def _or_nan(good: Array, x: Array) -> Array:
    """The rows of `x` that are good, and NaN for the others."""
    return jnp.where(good.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.nan)


def kept_hidden(program: Program, x: Array) -> Array | None:
    """Hidden states `[1, 1, rows, embed]` for those who score prompts; None if the program keeps none."""
    if program.kept_rows is None:
        return None
    return jnp.pad(x, ((0, program.kept_rows - x.shape[0]), (0, 0)))[None, None]


def hand_on(program: Program, x: Array, register: Array) -> Array:
    """The register with the previous stage's hidden states."""
    if program.layout.spp == 1:
        return register
    return with_rows(program, register, to_next_stage(x, program.layout))
