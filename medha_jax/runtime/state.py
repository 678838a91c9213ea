"""What lives on the device between ticks, and the settings of one slot in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from medha_jax.attention import Pool
from medha_jax.plan import MAX_STOP_TOKENS, Admission

INT32 = 2**31 - 1  # the largest one
MAX_END_TOKENS = MAX_STOP_TOKENS + 8  # stop tokens and the model's own end tokens
# Settings of a slot, with the values that ask for nothing, which rows of no slot get.
# FLOATS are named as in SamplingParams.
FLOATS = {
    "temperature": 0.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
INTEGERS = {"top_k": 0, "seed_high": 0, "seed_low": 0, "prompt": 0, "min_tokens": 0, "logprobs": -1}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlotState:
    """Sampling state of every slot: settings written at admission, counts kept by the ticks.

    Outside a tick each array has a leading axis of groups.
    `floats` and `integers` hold the columns FLOATS and INTEGERS, then the token ids that end the request.
    `generated` counts each generated token, `prompted` is 1 where the prompt contains the token.
    """

    floats: Float[Array, "slots floats"]
    integers: Int[Array, "slots integers"]
    generated: Int[Array, "slots vocab"]
    prompted: Int[Array, "slots vocab"]

    def column(self, name: str, slots: Array) -> Array:
        """One setting of the given slots; of numbers beyond them, the one that asks for nothing."""
        values, columns = (self.floats, FLOATS) if name in FLOATS else (self.integers, INTEGERS)
        return values.at[slots, list(columns).index(name)].get(mode="fill", fill_value=columns[name])

    def end_tokens(self, slots: Array) -> Array:
        """Token ids that end the requests `[slots, MAX_END_TOKENS]`; -1 pads."""
        return self.integers[slots, len(INTEGERS) :]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeviceState:
    """Everything a tick changes; donated to it and replaced by what it returns.

    Every group has its own pages, its own table of them, and its own view of the slots. `register` holds the hidden
    states that each stage received from the one before; a single stage uses none of it.
    """

    pool: Pool
    table: Int[Array, "groups slots pages_per_slot"]
    register: Float[Array, "stages groups rows embed"]
    last_token: Int[Array, "groups slots"]
    slots: SlotState


def empty_slots(groups: int, slots: int, vocab: int) -> SlotState:
    """State of slots that nobody uses, for every group."""
    return SlotState(
        floats=jnp.zeros((groups, slots, len(FLOATS)), jnp.float32),
        integers=jnp.zeros((groups, slots, len(INTEGERS) + MAX_END_TOKENS), jnp.int32),
        generated=jnp.zeros((groups, slots, vocab), jnp.int32),
        prompted=jnp.zeros((groups, slots, vocab), jnp.int8),
    )


def admission_arrays(admission: Admission, seed: int, vocab: int) -> tuple[np.ndarray, ...]:
    """What `admit` takes beside the state: the slot, then one row of each array of `SlotState`.

    Args:
        admission: of the request.
        seed: used when the request states none.
        vocab: entries of the vocabulary.
    """
    sampling = admission.sampling
    stated = seed if sampling.seed is None else sampling.seed
    high, low = np.array([stated >> 32, stated & 0xFFFFFFFF], np.uint32).view(np.int32)
    values = {
        "top_k": max(0, min(sampling.top_k, INT32)),  # a larger one means the same as "all"
        "seed_high": high,
        "seed_low": low,
        "prompt": admission.prompt,
        "min_tokens": min(sampling.min_tokens, INT32),
        "logprobs": -1 if sampling.logprobs is None else sampling.logprobs,
    }
    integers = np.full(len(INTEGERS) + MAX_END_TOKENS, -1, np.int32)
    integers[: len(INTEGERS)] = [values[name] for name in INTEGERS]
    ends = kept_end_tokens(admission.end_tokens)
    integers[len(INTEGERS) : len(INTEGERS) + len(ends)] = ends
    generated = np.bincount(np.asarray(admission.generated, np.int64), minlength=vocab).astype(np.int32)
    prompted = np.bincount(np.asarray(admission.prompted, np.int64), minlength=vocab) > 0
    floats = np.array([getattr(sampling, name) for name in FLOATS], np.float32)
    return np.array(admission.slot, np.int32), floats, integers, generated, prompted.astype(np.int8)


def admit(
    state: SlotState, slot: Array, floats: Array, integers: Array, generated: Array, prompted: Array
) -> SlotState:
    """Give a slot on every group to a request: its settings, and what it has counted so far."""
    return SlotState(
        floats=state.floats.at[:, slot].set(floats),
        integers=state.integers.at[:, slot].set(integers),
        generated=state.generated.at[:, slot].set(generated),
        prompted=state.prompted.at[:, slot].set(prompted),
    )


def adopt(table: Array, slot: Array, group: Array, pages: Array) -> Array:
    """Write `pages` `[pages_per_slot]`, filled up with anything, as a slot's pages on one group.

    Every group writes its own part of the table, so no group needs another's.
    """
    here = jnp.arange(table.shape[0])[:, None] == group
    return table.at[:, slot].set(jnp.where(here, pages, table[:, slot]))


def kept_end_tokens(stated: Sequence[int]) -> list[int]:
    """The end tokens of a slot; a model may name some that its vocabulary does not have."""
    return [token for token in stated if 0 <= token <= INT32][:MAX_END_TOKENS]


def adoption_arrays(slot: int, group: int, pages: Sequence[int], width: int) -> tuple[np.ndarray, ...]:
    """What `adopt` takes beside the table, whose rows are `width` pages."""
    row = np.zeros(width, np.int32)
    row[: len(pages)] = pages
    return np.array(slot, np.int32), np.array(group, np.int32), row


def note_inputs(state: SlotState, slots: Array, tokens: Array, positions: Array, given: Array) -> SlotState:
    """Count the tokens that the host sent: the prompt's, and generated ones of a request computed again."""
    nobody = state.generated.shape[0]
    prompt = positions < state.column("prompt", slots)
    return SlotState(
        floats=state.floats,
        integers=state.integers,
        generated=state.generated.at[jnp.where(given & ~prompt, slots, nobody), tokens].add(1, mode="drop"),
        prompted=state.prompted.at[jnp.where(given & prompt, slots, nobody), tokens].set(1, mode="drop"),
    )


def note_outputs(state: SlotState, slots: Array, tokens: Array) -> SlotState:
    """Count the tokens that were sampled for these slots; numbers beyond them are nobody's."""
    return SlotState(
        floats=state.floats,
        integers=state.integers,
        generated=state.generated.at[slots, tokens].add(1, mode="drop"),
        prompted=state.prompted,
    )
