"""Sampling of the next tokens, on the device.

A row's token depends only on its own logits, settings, seed and position, never on other rows. The batch skips a
step that none of its rows needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from medha_jax.plan import MAX_LOGPROBS
from medha_jax.runtime.state import SlotState

Step = tuple[Array, Callable[[Array], Array]]  # whether a row needs it, and what it makes of the logits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampled:
    """Chosen tokens and, for rows that request them (`wanted`), natural log-probabilities of the model's distribution.

    A token is meaningless where `finite` is false: its logits were not finite. `logits` is empty unless the
    runtime keeps logits.
    """

    token: Int[Array, " samples"]
    finite: Bool[Array, " samples"]
    wanted: Bool[Array, " samples"]
    logprob: Float[Array, " samples"]
    top_token: Int[Array, "samples top"]
    top_logprob: Float[Array, "samples top"]
    logits: Float[Array, "samples vocab"]


def sample(logits: Float[Array, "samples vocab"], state: SlotState, slots: Array, positions: Array) -> Sampled:
    """Choose a token for every row.

    Args:
        logits: fp32.
        slots: slot of each row; a number beyond the slots for rows whose token is not read.
        positions: position of the chosen token in its request.
    """
    changed = _changed(logits, state, slots, positions)
    temperature = state.column("temperature", slots)
    token = lax.cond(
        jnp.any(temperature > 0),
        lambda: jnp.where(temperature > 0, _draw(changed, state, slots, positions), _greedy(changed)),
        lambda: _greedy(changed),
    )
    wanted = state.column("logprobs", slots) >= 0
    logprob, top_token, top_logprob = _logprobs(logits, token, wanted)
    finite = jnp.isfinite(logits.max(-1)) & ~jnp.isnan(logits).any(-1)
    return Sampled(token, finite, wanted, logprob, top_token, top_logprob, jnp.zeros((logits.shape[0], 0)))


def _greedy(logits: Array) -> Array:
    return jnp.argmax(logits, -1).astype(jnp.int32)


def _changed(logits: Array, state: SlotState, slots: Array, positions: Array) -> Array:
    """The logits that tokens are chosen from.

    A condition that leaves logits as they are may copy them, because they are read again for log-probabilities. So a
    tick that needs no step meets one condition, and one that restricts nothing does no step for it.
    """
    restricted, restrict = _restriction(logits.shape, state, slots)
    early = _early_ends(logits.shape, state, slots, positions)
    others = _penalties(state, slots), early, _masks(logits.shape, state, slots)

    def unrestricted(logits: Array) -> Array:
        for wanted, apply in others:
            logits = lax.cond(wanted, apply, lambda x: x, logits)
        return logits

    def change(logits: Array) -> Array:
        found: Array = lax.cond(restricted, lambda x: unrestricted(restrict(x)), unrestricted, logits)
        return found

    wanted = functools.reduce(jnp.logical_or, [wanted for wanted, _ in others], restricted)
    changed: Array = lax.cond(wanted, change, lambda x: x, logits)
    return changed


def _restriction(shape: tuple[int, ...], state: SlotState, slots: Array) -> Step:
    """Add the rows' logit biases, and leave out tokens that they do not allow."""
    biased, allowed = state.column("biased", slots), state.column("allowed", slots)
    row, vocab = jnp.arange(shape[0])[:, None], shape[1]

    def listed(name: str, count: Array) -> Array:
        tokens = state.tokens(name, slots)
        return jnp.where(jnp.arange(tokens.shape[1]) < count[:, None], tokens, vocab)

    def apply(logits: Array) -> Array:
        changed = logits.at[row, listed("biased_tokens", biased)].add(state.biases(slots), mode="drop")
        kept = jnp.zeros(shape, bool).at[row, listed("allowed_tokens", allowed)].set(True, mode="drop")
        return jnp.where(kept | (allowed == 0)[:, None], changed, -jnp.inf)

    return jnp.any((biased > 0) | (allowed > 0)), apply


def _penalties(state: SlotState, slots: Array) -> Step:
    """Presence, frequency and repetition penalties."""
    repetition = state.column("repetition_penalty", slots)[:, None]
    presence = state.column("presence_penalty", slots)[:, None]
    frequency = state.column("frequency_penalty", slots)[:, None]

    def apply(logits: Array) -> Array:
        counts = state.generated[slots]
        seen = (counts > 0) | (state.prompted[slots] > 0)
        repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
        return jnp.where(seen, repeated, logits) - frequency * counts - presence * (counts > 0)

    return jnp.any((repetition != 1) | (presence != 0) | (frequency != 0)), apply


def _early_ends(shape: tuple[int, ...], state: SlotState, slots: Array, positions: Array) -> Step:
    """Leave out end tokens before `min_tokens`."""
    early = positions - state.column("prompt", slots) < state.column("min_tokens", slots)

    def apply(logits: Array) -> Array:
        ends = state.tokens("end_tokens", slots)
        ends = jnp.where(early[:, None] & (ends >= 0), ends, shape[1])
        return logits.at[jnp.arange(shape[0])[:, None], ends].set(-jnp.inf, mode="drop")

    return jnp.any(early), apply


def _masks(shape: tuple[int, ...], state: SlotState, slots: Array) -> Step:
    """Leave out what the masks of the rows that have one leave out."""
    masked = state.column("masked", slots) > 0

    def apply(logits: Array) -> Array:
        bits = state.masks[slots][:, :, None] >> jnp.arange(32, dtype=jnp.uint32) & 1
        kept = bits.reshape(shape[0], -1)[:, : shape[1]] > 0
        return jnp.where(kept | ~masked[:, None], logits, -jnp.inf)

    return jnp.any(masked), apply


def _draw(logits: Array, state: SlotState, slots: Array, positions: Array) -> Array:
    """Sample after temperature, top-k, top-p and min-p, in this order (that of Hugging Face transformers)."""
    temperature = jnp.maximum(state.column("temperature", slots), 1e-5)[:, None]
    scaled = logits / temperature
    keys = _ordered(scaled)

    top_k = state.column("top_k", slots).astype(jnp.float32)[:, None]
    top_k = jnp.where((top_k < 1) | (top_k > logits.shape[1]), logits.shape[1], top_k)
    keep = keys >= _threshold(keys, jnp.ones_like(scaled), top_k)

    top_p = state.column("top_p", slots)[:, None]
    weights = jax.nn.softmax(jnp.where(keep, scaled, -jnp.inf), -1)
    keep &= (keys >= _threshold(keys, weights, top_p)) | (top_p >= 1)

    weights = jax.nn.softmax(jnp.where(keep, scaled, -jnp.inf), -1)
    keep &= weights >= state.column("min_p", slots)[:, None] * weights.max(-1, keepdims=True)

    def noise(high: Array, low: Array, position: Array) -> Array:
        words = jnp.stack([high, low]).astype(jnp.uint32)
        key = jax.random.fold_in(jax.random.wrap_key_data(words, impl="threefry2x32"), position)
        return jax.random.gumbel(key, (logits.shape[1],), jnp.float32)

    seeds = state.column("seed_high", slots), state.column("seed_low", slots)
    return _greedy(jnp.where(keep, scaled, -jnp.inf) + jax.vmap(noise)(*seeds, positions))


def _ordered(x: Float[Array, "*shape"]) -> Array:
    """Unsigned integers that sort like the floats."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _threshold(keys: Array, weights: Array, target: Array) -> Array:
    """Largest t of each row such that the weights of all `keys >= t` sum to at least `target`.

    It is found bit by bit without a sort: 32 passes over the row, each a comparison and a sum.
    """

    def bit(number: Array, found: Array) -> Array:
        candidate = found | (jnp.uint32(1) << (31 - number).astype(jnp.uint32))
        reached = jnp.sum(jnp.where(keys >= candidate, weights, 0), -1, keepdims=True) >= target
        return jnp.where(reached, candidate, found)

    found: Array = lax.fori_loop(0, 32, bit, jnp.zeros((keys.shape[0], 1), jnp.uint32))
    return found


def _logprobs(logits: Array, token: Array, wanted: Array) -> tuple[Array, Array, Array]:
    rows, width = logits.shape[0], min(MAX_LOGPROBS, logits.shape[1])

    def compute() -> tuple[Array, Array, Array]:
        logprobs = jax.nn.log_softmax(logits, -1)
        chosen = jnp.take_along_axis(logprobs, token[:, None], -1)[:, 0]
        return chosen, *_likeliest(logprobs, width)

    def nothing() -> tuple[Array, Array, Array]:
        return jnp.zeros(rows), jnp.zeros((rows, width), jnp.int32), jnp.zeros((rows, width))

    logprobs: tuple[Array, Array, Array] = lax.cond(jnp.any(wanted), compute, nothing)
    return logprobs


def _likeliest(logprobs: Array, width: int) -> tuple[Array, Array]:
    """The `width` likeliest tokens of each row and their log-probabilities, best first; ties by lower token id.

    Each takes one pass. `lax.top_k` cannot be part of a command buffer on GPUs. The host would then wait for the
    condition around it in every tick, even if no row requests log-probabilities (2.6 of 12.1 ms on an H200).
    """
    rows = logprobs.shape[0]

    def pick(place: Array, found: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rest, tokens, values = found
        best = _greedy(rest)[:, None]
        value = jnp.take_along_axis(rest, best, -1)
        rest = jnp.where(jnp.arange(rest.shape[1]) == best, -jnp.inf, rest)
        tokens = lax.dynamic_update_slice(tokens, best, (0, place))
        return rest, tokens, lax.dynamic_update_slice(values, value, (0, place))

    nothing = jnp.zeros((rows, width), jnp.int32), jnp.zeros((rows, width))
    _, tokens, values = lax.fori_loop(0, width, pick, (logprobs, *nothing))
    return tokens, values
