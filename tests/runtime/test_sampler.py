"""The sampler against definitions written out in NumPy."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.plan import MAX_ALLOWED, MAX_BIASED, Admission, SamplingParams
from medha_jax.runtime.sampler import Sampled, sample
from medha_jax.runtime.state import (
    MAX_END_TOKENS,
    SlotState,
    admission_arrays,
    admit,
    empty_slots,
    note_inputs,
    note_outputs,
    write_masks,
)

VOCAB, SLOTS = 40, 8
jitted = functools.cache(lambda f: jax.jit(f))


def state_of(*params: SamplingParams, prompt: int = 0, ends: tuple[int, ...] = ()) -> SlotState:
    """Slots 0, 1, … with these settings; requests that state no seed have 7."""
    state = empty_slots(1, SLOTS, VOCAB)
    for slot, sampling in enumerate(params):
        own = dataclasses.replace(sampling, seed=7 if sampling.seed is None else sampling.seed)
        state = jitted(admit)(state, *admission_arrays(Admission(slot, own, prompt, ends), VOCAB))
    return jax.tree.map(lambda x: x[0], state)


def draw(logits: np.ndarray, state: SlotState, slots: list[int], positions: list[int]) -> Sampled:
    """Sample rows of logits `[rows, vocab]`."""
    slots_, positions_ = jnp.asarray(slots, jnp.int32), jnp.asarray(positions, jnp.int32)
    return jitted(sample)(jnp.asarray(logits, jnp.float32), state, slots_, positions_)


def allowed(logits: np.ndarray, params: SamplingParams) -> set[int]:
    """Tokens that top-k, then top-p, then min-p leave, by their definitions."""
    scaled = logits.astype(np.float64) / params.temperature
    order = np.argsort(-scaled, kind="stable")
    if params.top_k > 0:
        order = order[: params.top_k]
    weights = np.exp(scaled[order] - scaled[order[0]])
    weights /= weights.sum()
    if params.top_p < 1:
        order = order[: int(np.searchsorted(np.cumsum(weights), params.top_p)) + 1]
        weights = weights[: len(order)]
    return {int(token) for token, weight in zip(order, weights, strict=True) if weight >= params.min_p * weights[0]}


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=5),
        SamplingParams(temperature=1.5, top_p=0.6),
        SamplingParams(temperature=1.0, min_p=0.2),
        SamplingParams(temperature=1.0, top_k=12, top_p=0.8, min_p=0.05),
        SamplingParams(temperature=1.0, top_k=1),
        SamplingParams(temperature=1.0, top_k=10**9),
    ],
    ids=str,
)
def test_samples_follow_the_filtered_distribution(params: SamplingParams) -> None:
    logits = np.random.default_rng(0).normal(size=VOCAB).astype(np.float32) * 1.5
    draws = 4096
    tokens = np.asarray(draw(np.tile(logits, (draws, 1)), state_of(params), [0] * draws, list(range(draws))).token)
    keep = allowed(logits, params)
    assert set(tokens.tolist()) <= keep
    weights = np.where(np.isin(np.arange(VOCAB), list(keep)), np.exp(logits / params.temperature), 0)
    expected = weights / weights.sum() * draws
    seen = np.bincount(tokens, minlength=VOCAB)
    frequent = expected > 5
    chi2 = ((seen - expected)[frequent] ** 2 / expected[frequent]).sum()
    # 6 standard deviations above the mean of a chi-square of this many degrees of freedom
    assert chi2 < frequent.sum() + 6 * np.sqrt(2 * frequent.sum())


def test_a_mask_leaves_its_tokens_out_until_the_slot_is_written_again() -> None:
    rng, stated = np.random.default_rng(5), SamplingParams(temperature=1, logprobs=0)
    logits = rng.normal(size=(200, VOCAB)).astype(np.float32)
    state = jax.tree.map(lambda x: x[None], state_of(stated, stated, SamplingParams(temperature=0)))
    kept = np.array([0, 31, 32, 39])
    words = np.zeros((3, 2), np.uint32)
    for token in kept:
        words[0, token // 32] |= np.uint32(1 << token % 32)
    words[1] = words[0]
    state = jitted(write_masks)(state, np.array([0, 2, SLOTS], np.int32), words)
    slots, positions = [0, 1] * 99 + [2, 2], list(range(200))
    got = draw(logits, jax.tree.map(lambda x: x[0], state), slots, positions)
    free = draw(logits, state_of(stated, stated, SamplingParams(temperature=0)), slots, positions)
    masked, other = np.asarray(got.token)[0:198:2], np.asarray(got.token)[1:198:2]
    assert set(masked.tolist()) == set(kept.tolist())
    np.testing.assert_array_equal(other, np.asarray(free.token)[1:198:2])
    np.testing.assert_array_equal(np.asarray(got.token)[198:], kept[logits[198:, kept].argmax(-1)])
    log_softmax = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    np.testing.assert_allclose(got.logprob, log_softmax[np.arange(200), got.token], rtol=1e-4, atol=1e-5)
    state = jitted(admit)(state, *admission_arrays(Admission(0, dataclasses.replace(stated, seed=7), 0), VOCAB))
    again = draw(logits, jax.tree.map(lambda x: x[0], state), slots, positions)
    np.testing.assert_array_equal(np.asarray(again.token)[:198], np.asarray(free.token)[:198])


def test_temperature_zero_is_greedy_beside_sampled_neighbours() -> None:
    logits = np.random.default_rng(1).normal(size=(2, VOCAB)).astype(np.float32)
    got = draw(logits, state_of(SamplingParams(temperature=0), SamplingParams(temperature=50)), [0, 1], [3, 3])
    assert got.token[0] == logits[0].argmax()


@settings(max_examples=25)
@given(st.integers(0, 2**63 - 1), st.permutations(range(5)), st.integers(0, 10**7))
def test_the_same_seed_gives_the_same_token_whatever_else_is_in_the_batch(
    seed: int, order: list[int], position: int
) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(5, VOCAB)).astype(np.float32)
    mine = SamplingParams(temperature=1, seed=seed)
    others = [SamplingParams(temperature=0.5 + i, seed=i, top_k=3) for i in range(4)]
    alone = draw(logits[:1].repeat(5, 0), state_of(*[mine] * 5), [0] * 5, [position] * 5).token
    mixed = draw(logits[order], state_of(mine, *others), order, [position] * 5).token
    assert len(set(np.asarray(alone).tolist())) == 1
    assert mixed[order.index(0)] == alone[0]


def test_different_seeds_and_positions_differ() -> None:
    flat = np.zeros((64, VOCAB), np.float32)
    params = [SamplingParams(temperature=1, seed=s) for s in (0, 1, 2**40)]
    by_seed = [np.asarray(draw(flat, state_of(p), [0] * 64, list(range(64))).token) for p in params]
    for left, right in ((0, 1), (0, 2), (1, 2)):
        assert (by_seed[left] != by_seed[right]).mean() > 0.8
    assert len(set(by_seed[0].tolist())) > 20


def test_penalties_follow_their_definitions() -> None:
    logits = np.array([[2.0, -2.0, 1.0, -1.0] + [-9.0] * (VOCAB - 4)], np.float32)
    params = SamplingParams(
        temperature=0, repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logprobs=0
    )
    state = state_of(params, prompt=2)
    # the prompt is tokens 0 and 1; tokens 1, 2, 2 were generated
    slots = jnp.zeros(2, jnp.int32)
    state = jitted(note_inputs)(state, slots, jnp.array([0, 1]), jnp.array([0, 1]), jnp.array([True, True]))
    for token in (1, 2, 2):
        state = jitted(note_outputs)(state, slots[:1], jnp.array([token]))
    np.testing.assert_array_equal(state.generated[0, :4], [0, 1, 2, 0])
    np.testing.assert_array_equal(state.prompted[0, :4], [1, 1, 0, 0])
    # 0: 2/2 = 1; 1: -2*2 - .5 - .25 = -4.75; 2: 1/2 - .5 - .5 = -.5; 3: -1 unchanged
    assert draw(logits, state, [0], [5]).token[0] == 0
    without = logits.copy()
    without[0, 0] = -9
    assert draw(without, state, [0], [5]).token[0] == 2
    without[0, 2] = -9
    assert draw(without, state, [0], [5]).token[0] == 3
    # log-probabilities are those of the model, before penalties
    expected = logits[0, 0] - np.log(np.exp(logits[0].astype(np.float64)).sum())
    np.testing.assert_allclose(draw(logits, state, [0], [5]).logprob[0], expected, rtol=1e-5)


def test_a_request_that_begins_to_be_shared_keeps_its_counts_on_every_group() -> None:
    counts, seen = np.arange(VOCAB, dtype=np.int32), np.ones(VOCAB, np.int8)
    admission = Admission(2, SamplingParams(seed=0), 3, (), range(VOCAB), np.repeat(np.arange(VOCAB), counts).tolist())
    state = jitted(admit)(empty_slots(3, SLOTS, VOCAB), *admission_arrays(admission, VOCAB))
    for group in range(3):
        np.testing.assert_array_equal(state.generated[group, 2], counts)
        np.testing.assert_array_equal(state.prompted[group, 2], seen)
        assert not state.generated[group, 1].any()


def test_tokens_computed_again_count_as_generated() -> None:
    state = state_of(SamplingParams(), prompt=2)
    args = jnp.zeros(4, jnp.int32), jnp.array([5, 6, 7, 8]), jnp.arange(4), jnp.array([True, True, True, False])
    state = jitted(note_inputs)(state, *args)
    assert np.flatnonzero(state.prompted[0]).tolist() == [5, 6]
    assert np.flatnonzero(state.generated[0]).tolist() == [7]


def test_end_tokens_are_held_back_until_min_tokens() -> None:
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, [3, 4, 5]] = 9, 8, 7
    state = state_of(SamplingParams(temperature=0, min_tokens=2), prompt=10, ends=(3, 4))
    assert [int(draw(logits, state, [0], [p]).token[0]) for p in (10, 11, 12, 13)] == [5, 5, 3, 3]


def restricted(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """A row of logits with its biases, and -inf for tokens that are not allowed, by their definitions."""
    changed = logits.astype(np.float32).copy()
    for token, bias in params.logit_bias:
        changed[token] += np.float32(bias)
    if params.allowed_token_ids is not None:
        others = np.setdiff1d(np.arange(len(logits)), params.allowed_token_ids)
        changed[others] = -np.inf
    return changed


tokens_ = st.integers(0, VOCAB - 1)
restrictions = st.builds(
    SamplingParams,
    logit_bias=st.dictionaries(tokens_, st.floats(-100, 100), max_size=VOCAB).map(lambda kept: tuple(kept.items())),
    allowed_token_ids=st.none() | st.lists(tokens_, min_size=1, max_size=60).map(tuple),
    temperature=st.sampled_from([0.0, 1.0]),
    top_k=st.sampled_from([0, 3]),
    seed=st.integers(0, 99),
)


@settings(max_examples=40)
@given(st.lists(restrictions, min_size=1, max_size=4), st.integers(0, 2**32))
def test_biases_and_allowed_tokens_follow_their_definitions_beside_any_neighbours(
    params: list[SamplingParams], number: int
) -> None:
    """A row chooses what it would of logits changed on the host; its log-probabilities are those of the model."""
    rows = list(range(len(params))) * (4 // len(params)) + [SLOTS] * (4 % len(params))
    logits = np.random.default_rng(number).normal(size=(4, VOCAB)).astype(np.float32) * 5
    got = draw(logits, state_of(*params), rows, [3] * 4)
    plain = state_of(*(dataclasses.replace(one, logit_bias=(), allowed_token_ids=None) for one in params))
    unstated = SamplingParams()
    stated = [params[slot] if slot < SLOTS else unstated for slot in rows]
    changed = np.stack([restricted(row, one) for row, one in zip(logits, stated, strict=True)])
    np.testing.assert_array_equal(got.token, draw(changed, plain, rows, [3] * 4).token)
    for one, token in zip(stated, np.asarray(got.token).tolist(), strict=True):
        assert one.allowed_token_ids is None or token in one.allowed_token_ids


def test_the_longest_lists_fill_their_places() -> None:
    vocab, rng = 2000, np.random.default_rng(0)
    biased, kept = rng.permutation(vocab)[:MAX_BIASED].tolist(), rng.permutation(vocab)[:MAX_ALLOWED].tolist()
    params = SamplingParams(
        temperature=0,
        logit_bias=tuple((token, float(place % 7) - 3) for place, token in enumerate(biased)),
        allowed_token_ids=tuple(kept),
    )
    ends = tuple(range(MAX_END_TOKENS))
    state = jitted(admit)(empty_slots(1, 2, vocab), *admission_arrays(Admission(1, params, 0, ends), vocab))
    mine = jax.tree.map(lambda x: x[0], state)
    for row in rng.normal(size=(5, vocab)).astype(np.float32):
        token = jitted(sample)(jnp.asarray(row)[None], mine, jnp.array([1]), jnp.array([0])).token[0]
        assert token == restricted(row, params).argmax()
    assert mine.tokens("end_tokens", jnp.array([1])).tolist() == [list(ends)]


def test_biases_come_before_penalties_and_the_least_is_no_ban() -> None:
    logits = np.full((1, VOCAB), -9, np.float32)
    logits[0, :3] = 3.0, 2.0, 1.5
    params = SamplingParams(temperature=0, repetition_penalty=2.0, logit_bias=((0, 1.0), (2, 0.75)))
    admission = Admission(0, dataclasses.replace(params, seed=1), 1, (), [0])
    state = jitted(admit)(empty_slots(1, SLOTS, VOCAB), *admission_arrays(admission, VOCAB))
    # 0: (3 + 1) / 2 = 2, not 3 / 2 + 1 = 2.5; 1: 2; 2: 1.5 + 0.75 = 2.25
    assert draw(logits, jax.tree.map(lambda x: x[0], state), [0], [1]).token[0] == 2
    least = state_of(SamplingParams(temperature=0, logit_bias=((0, -100.0),)))
    assert draw(logits, least, [0], [0]).token[0] == 1
    logits[0, 0] = 103
    assert draw(logits, least, [0], [0]).token[0] == 0


def test_an_end_that_is_not_allowed_is_never_sampled_and_an_allowed_one_waits_for_min_tokens() -> None:
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, [3, 4, 5]] = 9, 8, 7
    stated = SamplingParams(temperature=0, min_tokens=1, allowed_token_ids=(4, 5))
    state = state_of(stated, prompt=10, ends=(3, 4))
    assert [int(draw(logits, state, [0], [p]).token[0]) for p in (10, 11)] == [5, 4]


def test_rows_that_restrict_nothing_do_no_work_for_it() -> None:
    """Outside of conditions the sampler scatters nothing, and reads no list of a slot and no counts."""
    rows = jnp.zeros(4, jnp.int32)
    traced = jax.make_jaxpr(sample)(jnp.zeros((4, VOCAB)), state_of(SamplingParams(temperature=0)), rows, rows)
    outside = [equation for equation in traced.eqns if equation.primitive.name != "cond"]
    inside = [equation for equation in traced.eqns if equation.primitive.name == "cond"]
    assert not [equation for equation in outside if "scatter" in equation.primitive.name]
    read = [value for equation in outside for value in equation.outvars if equation.primitive.name == "gather"]
    assert read and all(value.aval.str_short().endswith("[4]") for value in read)
    assert len(inside) == 3  # what changes logits, draw, log-probabilities


def test_logprobs_of_the_likeliest_tokens() -> None:
    logits = np.random.default_rng(3).normal(size=(1, VOCAB)).astype(np.float32)
    got = draw(logits, state_of(SamplingParams(temperature=0.1, logprobs=4)), [0], [0])
    expected = logits[0] - np.log(np.exp(logits[0].astype(np.float64)).sum())
    order = np.argsort(-expected)[:20]
    np.testing.assert_array_equal(got.top_token[0], order)
    np.testing.assert_allclose(got.top_logprob[0], expected[order], rtol=1e-5)
    np.testing.assert_allclose(got.logprob[0], expected[int(got.token[0])], rtol=1e-5)


def test_rows_of_no_slot_ask_for_nothing() -> None:
    logits = np.random.default_rng(4).normal(size=(2, VOCAB)).astype(np.float32)
    asking = SamplingParams(temperature=50, repetition_penalty=2, presence_penalty=2, logprobs=5, min_tokens=9)
    asking = dataclasses.replace(asking, logit_bias=((3, 100.0),), allowed_token_ids=(3,))
    state = state_of(SamplingParams(temperature=0), *[asking] * (SLOTS - 1), ends=(int(logits[1].argmax()),))
    for beyond in (SLOTS, SLOTS + 1):
        got = draw(logits, state, [0, beyond], [3, 3])
        np.testing.assert_array_equal(got.token, logits.argmax(-1))
        assert not np.any(got.logprob) and not np.any(got.top_logprob)
    assert np.all(draw(logits, state, [0, SLOTS - 1], [3, 3]).logprob)


def test_logits_that_are_not_numbers_are_told() -> None:
    logits = np.zeros((3, VOCAB), np.float32)
    logits[1, 5] = np.nan
    logits[2] = -np.inf
    got = draw(logits, state_of(SamplingParams(temperature=0)), [0, 0, 0], [0, 0, 0])
    assert got.finite.tolist() == [True, False, False]


def test_who_samples_without_a_seed_is_refused_because_two_would_share_their_noise() -> None:
    with pytest.raises(ValueError, match="has no seed"):
        admission_arrays(Admission(0, SamplingParams(), 1), VOCAB)
    admission_arrays(Admission(0, SamplingParams(temperature=0), 1), VOCAB)


@pytest.mark.parametrize("value", [5e-324, 1e-300, 1e-46, 1e-45, 1e-40, 1e-38, 1e-31])
def test_a_number_too_small_for_float32_acts_as_its_limit_does(value: float) -> None:
    logits = np.random.default_rng(0).normal(size=(1, VOCAB)).astype(np.float32)
    best, seeds = int(logits.argmax()), range(20)

    def tokens(**stated: float) -> set[int]:
        return {int(draw(logits, state_of(SamplingParams(seed=seed, **stated)), [0], [3]).token[0]) for seed in seeds}

    assert tokens(temperature=value) == tokens(top_p=value) == {best}
    assert tokens(min_p=value) == tokens() and len(tokens()) > 3
    assert tokens(presence_penalty=value, frequency_penalty=-value) == tokens()
    # a tiny repetition penalty wants what was seen, the likeliest of it first
    seen = [token for token in np.argsort(logits[0]).tolist() if logits[0, token] > 0][:3]
    admission = Admission(0, SamplingParams(repetition_penalty=value, seed=1), 3, (), seen)
    state = jitted(admit)(empty_slots(1, SLOTS, VOCAB), *admission_arrays(admission, VOCAB))
    assert int(draw(logits, jax.tree.map(lambda x: x[0], state), [0], [3]).token[0]) == seen[-1]
