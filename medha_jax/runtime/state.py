"""What lives on the device between ticks, and the settings of one slot in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from medha_jax.attention import Pool
from medha_jax.plan import MAX_STOP_TOKENS, SamplingParams

MAX_END_TOKENS = MAX_STOP_TOKENS + 8  # stop tokens and the model's own end tokens
# settings of a slot, and what they are for rows of no slot, which ask for nothing
FLOATS = {"temperature": 0.0, "top_p": 1.0, "min_p": 0.0, "repetition": 1.0, "presence": 0.0, "frequency": 0.0}
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


def slot_settings(
    sampling: SamplingParams, seed: int, prompt: int, end_tokens: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `SlotState.floats` and `SlotState.integers` for one request.

    Args:
        sampling: the request's settings.
        seed: used when the request states none.
        prompt: tokens in the prompt.
        end_tokens: ids that end the request; suppressed before `min_tokens`.
    """
    floats = np.array(
        [
            sampling.temperature,
            sampling.top_p,
            sampling.min_p,
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
        ],
        np.float32,
    )
    integers = np.full(len(INTEGERS) + MAX_END_TOKENS, -1, np.int32)
    chosen = seed if sampling.seed is None else sampling.seed
    words = np.array([chosen >> 32, chosen & 0xFFFFFFFF], np.uint32).view(np.int32)
    logprobs = -1 if sampling.logprobs is None else sampling.logprobs
    # vocabularies and min_tokens stay below 2**31; a larger top_k means the same as "all"
    top_k = max(0, min(sampling.top_k, 2**31 - 1))
    integers[: len(INTEGERS)] = (top_k, *words, prompt, min(sampling.min_tokens, 2**31 - 1), logprobs)
    # a model may name end tokens that its vocabulary does not have
    ends = [token for token in end_tokens if 0 <= token < 2**31][:MAX_END_TOKENS]
    integers[len(INTEGERS) : len(INTEGERS) + len(ends)] = ends
    return floats, integers


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
