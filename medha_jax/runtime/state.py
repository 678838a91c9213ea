"""The device state between ticks, with the sampling settings of every slot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt

from medha_jax.attention import Pool
from medha_jax.plan import MAX_ALLOWED, MAX_BIASED, MAX_STOP_TOKENS, Admission, mask_words
from medha_jax.token_ids import array_of

INT32 = 2**31 - 1  # largest value
MAX_END_TOKENS = MAX_STOP_TOKENS + 8  # stop tokens and the model's own end tokens
# Settings of a slot with neutral values, which rows without a slot get. FLOATS are named as in SamplingParams.
FLOATS = {
    "temperature": 0.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
# Below these a setting acts as its limit at 0 does: float32 would make 0 of it, which keeps no token, or divides by 0.
LEAST = {"top_p": 1e-30, "repetition_penalty": 1e-30}
INTEGERS = {
    "top_k": 0,
    "seed_high": 0,
    "seed_low": 0,
    "prompt": 0,
    "min_tokens": 0,
    "logprobs": -1,
    "biased": 0,  # entries of the lists below
    "allowed": 0,
    "masked": 0,  # 1: only the tokens of `masks` may be sampled
}
# Lists of a slot, after its columns: their names and sizes.
LISTS = {"end_tokens": MAX_END_TOKENS, "biased_tokens": MAX_BIASED, "allowed_tokens": MAX_ALLOWED}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlotState:
    """Sampling state of every slot: settings written at admission, and token counts that ticks update.

    Outside a tick each array has a leading axis of groups. `floats` holds the columns FLOATS. `integers` holds
    INTEGERS, then the token ids of LISTS; `floats` ends with the biases of `biased_tokens`. `generated` counts each
    token; `prompted` is 1 for tokens of the prompt. `masks` are as `plan.mask_words` says.
    """

    floats: Float[Array, "slots floats"]
    integers: Int[Array, "slots integers"]
    generated: Int[Array, "slots vocab"]
    prompted: Int[Array, "slots vocab"]
    masks: UInt[Array, "slots words"]

    def column(self, name: str, slots: Array) -> Array:
        """One setting of the given slots; the neutral value for numbers beyond the slots."""
        values, columns = (self.floats, FLOATS) if name in FLOATS else (self.integers, INTEGERS)
        return values.at[slots, list(columns).index(name)].get(mode="fill", fill_value=columns[name])

    def tokens(self, name: str, slots: Array) -> Array:
        """One of LISTS of the given slots `[slots, its size]`; -1 pads. Meaningless for numbers beyond the slots."""
        return self.integers[slots, _place(name)]

    def biases(self, slots: Array) -> Array:
        """What is added to the logits of the slots' `biased_tokens`; 0 pads."""
        return self.floats[slots, len(FLOATS) :]


def _place(name: str) -> slice:
    """Where one of LISTS lies in the integers of a slot."""
    names = list(LISTS)
    start = len(INTEGERS) + sum(LISTS[before] for before in names[: names.index(name)])
    return slice(start, start + LISTS[name])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeviceState:
    """Everything that ticks and slices change. It is donated to each of them, which returns the new state.

    Every group has its own pages, page table and copy of the slots. `register` holds the hidden states that each
    stage received from the previous one; a single stage does not use it. `held` holds the rows of each stage's chunk
    between two slices.
    """

    pool: Pool
    table: Int[Array, "groups slots pages_per_slot"]
    register: Float[Array, "stages groups rows embed"]
    held: Float[Array, "stages groups held_rows embed"]
    last_token: Int[Array, "groups slots"]
    slots: SlotState


def empty_slots(groups: int, slots: int, vocab: int) -> SlotState:
    """State of unused slots, for every group."""
    return SlotState(
        floats=jnp.zeros((groups, slots, len(FLOATS) + MAX_BIASED), jnp.float32),
        integers=jnp.zeros((groups, slots, len(INTEGERS) + sum(LISTS.values())), jnp.int32),
        generated=jnp.zeros((groups, slots, vocab), jnp.int32),
        prompted=jnp.zeros((groups, slots, vocab), jnp.int8),
        masks=jnp.zeros((groups, slots, mask_words(vocab)), jnp.uint32),
    )


def admission_arrays(admission: Admission, vocab: int) -> tuple[np.ndarray, ...]:
    """Arguments of `admit` beside the state: the slot, then one row of each array of `SlotState`.

    Raises:
        ValueError: the request samples, and nobody drew a seed for it.
    """
    sampling = admission.sampling
    if sampling.seed is None and sampling.temperature > 0:
        raise ValueError("a request that samples has no seed; two of them would share their noise")
    seed, allowed = sampling.seed or 0, sampling.allowed_token_ids or ()
    high, low = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32).view(np.int32)
    values = {
        "top_k": max(0, min(sampling.top_k, INT32)),  # a larger one means the same as "all"
        "seed_high": high,
        "seed_low": low,
        "prompt": admission.prompt,
        "min_tokens": min(sampling.min_tokens, INT32),
        "logprobs": -1 if sampling.logprobs is None else sampling.logprobs,
        "biased": len(sampling.logit_bias),
        "allowed": len(allowed),
        "masked": 0,
    }
    lists = {
        "end_tokens": kept_end_tokens(admission.end_tokens),
        "biased_tokens": [token for token, _ in sampling.logit_bias],
        "allowed_tokens": allowed,
    }
    integers = np.full(len(INTEGERS) + sum(LISTS.values()), -1, np.int32)
    integers[: len(INTEGERS)] = [values[name] for name in INTEGERS]
    for name, tokens in lists.items():
        integers[_place(name)][: len(tokens)] = tokens
    generated = np.bincount(array_of(admission.generated), minlength=vocab).astype(np.int32)
    prompted = np.bincount(array_of(admission.prompted), minlength=vocab) > 0
    floats = np.zeros(len(FLOATS) + MAX_BIASED, np.float32)
    floats[: len(FLOATS)] = [max(getattr(sampling, name), LEAST.get(name, -math.inf)) for name in FLOATS]
    floats[len(FLOATS) :][: len(sampling.logit_bias)] = [bias for _, bias in sampling.logit_bias]
    return np.array(admission.slot, np.int32), floats, integers, generated, prompted.astype(np.int8)


def admit(
    state: SlotState, slot: Array, floats: Array, integers: Array, generated: Array, prompted: Array
) -> SlotState:
    """Write a request's settings and token counts into a slot, on every group; it has no mask then."""
    return replace(
        state,
        floats=state.floats.at[:, slot].set(floats),
        integers=state.integers.at[:, slot].set(integers),
        generated=state.generated.at[:, slot].set(generated),
        prompted=state.prompted.at[:, slot].set(prompted),
    )


def write_masks(state: SlotState, slots: Array, masks: Array) -> SlotState:
    """Let slots sample the tokens of `masks` `[slots, words]` only, on every group, until the slot is written again.

    Numbers beyond the slots are padding.
    """
    switch = list(INTEGERS).index("masked")
    return replace(
        state,
        integers=state.integers.at[:, slots, switch].set(1, mode="drop"),
        masks=state.masks.at[:, slots].set(masks, mode="drop"),
    )


def adopt(table: Array, slot: Array, group: Array, pages: Array) -> Array:
    """Write `pages` `[pages_per_slot]`, padded with any values, as a slot's pages on one group.

    Every group writes its own part of the table, so groups need no communication.
    """
    here = jnp.arange(table.shape[0])[:, None] == group
    return table.at[:, slot].set(jnp.where(here, pages, table[:, slot]))


def kept_end_tokens(stated: Sequence[int]) -> list[int]:
    """End tokens that a slot can hold; drops ids outside int32, since a model may name invalid ones."""
    return [token for token in stated if 0 <= token <= INT32][:MAX_END_TOKENS]


def adoption_arrays(slot: int, group: int, pages: Sequence[int], width: int) -> tuple[np.ndarray, ...]:
    """Arguments of `adopt` beside the table, whose rows have `width` pages."""
    row = np.zeros(width, np.int32)
    row[: len(pages)] = pages
    return np.array(slot, np.int32), np.array(group, np.int32), row


def note_inputs(state: SlotState, slots: Array, tokens: Array, positions: Array, given: Array) -> SlotState:
    """Count tokens sent by the host: those of the prompt, and generated tokens of a request that is recomputed."""
    nobody = state.generated.shape[0]
    prompt = positions < state.column("prompt", slots)
    return replace(
        state,
        generated=state.generated.at[jnp.where(given & ~prompt, slots, nobody), tokens].add(1, mode="drop"),
        prompted=state.prompted.at[jnp.where(given & prompt, slots, nobody), tokens].set(1, mode="drop"),
    )


def note_outputs(state: SlotState, slots: Array, tokens: Array) -> SlotState:
    """Count the tokens sampled for these slots; ignores numbers beyond the slots."""
    return replace(state, generated=state.generated.at[slots, tokens].add(1, mode="drop"))
