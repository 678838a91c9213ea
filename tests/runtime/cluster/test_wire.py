from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.plan import (
    MAX_ALLOWED,
    MAX_BIASED,
    Admission,
    Chunk,
    PageCopy,
    SamplingParams,
    Slice,
    StepPlan,
    TokenResult,
    mask_words,
)
from medha_jax.protos import plans_pb2 as pb
from medha_jax.runtime.cluster.wire import (
    COPIES,
    decode_admission,
    decode_copies,
    decode_masks,
    decode_plan,
    decode_results,
    decode_sampling,
    decode_slice,
    encode_admission,
    encode_copies,
    encode_masks,
    encode_plan,
    encode_results,
    encode_sampling,
    encode_slice,
    message_limit,
)
from medha_jax.runtime.state import admission_arrays

VOCAB, WIDTH = 300, 200_000
WIDE = RuntimeConfig(
    mesh=MeshConfig(
        spp=4,
        kvp=8,
        page_size=1,
        buckets=Buckets((32,), (1024,), 8, slices=(4096,)),
        shared_buckets=Buckets((4,), (256,), 2, slices=(2048,)),
    ),
    keep_logits=True,
)
sizes, ids = st.integers(0, 2**31 - 1), st.lists(st.integers(0, 2**31 - 1), max_size=20).map(tuple)


def floats(low: float, high: float, **more: bool) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, **more)


samplings = st.builds(
    SamplingParams,
    temperature=floats(0, 100),
    top_k=st.integers(-1, 2**63 - 1),
    top_p=floats(0, 1, exclude_min=True),
    min_p=floats(0, 1),
    repetition_penalty=floats(0, 2, exclude_min=True),
    presence_penalty=floats(-2, 2),
    frequency_penalty=floats(-2, 2),
    seed=st.none() | st.integers(0, 2**63 - 1),
    max_tokens=st.none() | st.integers(100, 2**63 - 1),
    min_tokens=st.integers(0, 100),
    stop_token_ids=st.lists(st.integers(0, 2**63 - 1), max_size=16).map(tuple),
    stop=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256), max_size=16).map(tuple),
    include_stop=st.booleans(),
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
    logit_bias=st.dictionaries(st.integers(0, 2**31 - 1), floats(-100, 100), max_size=300).map(
        lambda biases: tuple(sorted(biases.items()))
    ),
    allowed_token_ids=st.none() | st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30).map(tuple),
)
chunks = st.builds(
    Chunk,
    slot=sizes,
    start=sizes,
    length=sizes,
    tokens=st.none() | ids,
    last=st.booleans(),
    first_page=sizes,
    pages=ids,
    groups=st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True).map(tuple),
)


@given(samplings)
def test_sampling_travels_unchanged(sampling: SamplingParams) -> None:
    sent = encode_sampling(sampling).SerializeToString()
    assert decode_sampling(pb.Sampling.FromString(sent)) == sampling


def test_counts_beyond_a_message_mean_the_same() -> None:
    sampling = SamplingParams(top_k=10**30, max_tokens=10**40, min_tokens=10**30, seed=1)
    got = decode_sampling(encode_sampling(sampling))
    arrays = (admission_arrays(Admission(0, stated, 1), 1) for stated in (sampling, got))
    for mine, theirs in zip(*arrays, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@given(st.lists(chunks, max_size=8).map(tuple).map(StepPlan))
def test_plans_travel_unchanged(plan: StepPlan) -> None:
    assert decode_plan(pb.Tick.FromString(encode_plan(plan).SerializeToString())) == plan


@given(st.lists(st.lists(chunks, max_size=3).map(tuple).map(StepPlan), min_size=1, max_size=4).map(tuple), sizes, sizes)
def test_slices_travel_unchanged_and_repeat_no_plans(stages: tuple[StepPlan, ...], first: int, past: int) -> None:
    work = Slice(stages, first, past)
    whole, short = (encode_slice(work, before) for before in ((), stages))
    assert decode_slice(pb.Slice.FromString(whole.SerializeToString()), ()) == work
    assert decode_slice(pb.Slice.FromString(short.SerializeToString()), stages) == work
    assert not short.stages


@given(st.lists(st.builds(PageCopy, sizes, sizes, sizes, st.booleans()), min_size=1, max_size=8).map(tuple))
def test_copies_of_pages_travel_unchanged(copies: tuple[PageCopy, ...]) -> None:
    assert decode_copies(pb.Copy.FromString(encode_copies(copies).SerializeToString())) == copies


def test_masks_travel_unchanged() -> None:
    masks = np.random.default_rng(0).integers(0, 2**32, (3, 5)).astype(np.uint32)
    slots, got = decode_masks(pb.Masks.FromString(encode_masks([4, 0, 9], masks).SerializeToString()))
    assert slots == (4, 0, 9) and got.dtype == np.uint32
    np.testing.assert_array_equal(got, masks)
    with pytest.raises(ValueError, match="reshape"):
        decode_masks(pb.Masks(slots=[1, 2], words=b"12345678" + b"1234"))


def test_copies_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        decode_copies(pb.Copy(group=[1], page=[2, 3], place=[4], to_host=[True]))


@given(st.builds(Admission, slot=sizes, sampling=samplings, prompt=sizes, end_tokens=ids, prompted=ids, generated=ids))
def test_admissions_travel_with_their_counts(admission: Admission) -> None:
    got = decode_admission(pb.Admit.FromString(encode_admission(admission).SerializeToString()))
    assert got.generated == tuple(sorted(admission.generated))
    assert got.prompted == tuple(sorted(set(admission.prompted)))
    same = dict(generated=(), prompted=())
    assert replace(got, **same) == replace(admission, **same)


def result(seed: int, vocab: int = 0) -> TokenResult:
    rng = np.random.default_rng(seed)
    tokens, logprobs = rng.integers(0, 2**31 - 1, 20).tolist(), rng.normal(size=20).astype(np.float32).tolist()
    top = tuple(zip(tokens, logprobs, strict=True))
    logits = rng.normal(size=vocab).astype(np.float32)
    return TokenResult(int(rng.integers(2**31 - 1)), bool(seed % 2), float(np.float32(rng.normal())), top, logits)


@pytest.mark.parametrize("vocab", [0, 7])
def test_results_travel_unchanged(vocab: int) -> None:
    results = {number: result(number, vocab) for number in (0, 3, 4)}
    sequence = 2**40
    message = pb.Results.FromString(encode_results(sequence, results).SerializeToString())
    got = decode_results(message)
    assert message.sequence == sequence
    assert got.keys() == results.keys()
    for number, mine in results.items():
        theirs = got[number]
        assert (theirs.token, theirs.finite, theirs.logprob, theirs.top) == (
            mine.token,
            mine.finite,
            mine.logprob,
            mine.top,
        )
        np.testing.assert_array_equal(theirs.logits, mine.logits)


def test_results_of_unequal_length_are_refused() -> None:
    message = encode_results(1, {0: result(0), 1: result(1)})
    message.token.append(3)
    with pytest.raises(ValueError, match="zip"):
        decode_results(message)


@settings(max_examples=5)
@given(samplings)
def test_the_largest_messages_are_within_the_limit(sampling: SamplingParams) -> None:
    limit = message_limit(WIDE, VOCAB, WIDTH)
    biases = tuple((2**31 - 1 - token, -0.1) for token in range(MAX_BIASED))
    sampling = replace(sampling, logit_bias=biases, allowed_token_ids=(2**31 - 1,) * MAX_ALLOWED)
    every = tuple(range(VOCAB))
    largest = Admission(2**31 - 1, sampling, 2**62, every, every, every)
    assert encode_admission(largest).ByteSize() < limit
    far, groups, last = 2**62, tuple(range(8)), 2**31 - 1

    def chunk(length: int) -> Chunk:
        return Chunk(last, far, length, (last,) * length, True, far, (last,) * (length + 1), groups)

    own = [chunk(1)] * 32 + [chunk(128)] * 8
    plan = StepPlan((*(own * 8), *[chunk(1)] * 4, *[chunk(128)] * 2))
    assert encode_plan(plan).ByteSize() < limit
    stage = StepPlan((*[chunk(4096)] * 8, chunk(2048)))
    assert encode_slice(Slice((stage,) * 4, last, last), ()).ByteSize() < limit
    adopt = pb.Adopt(slot=last, group=last, pages=[last] * WIDTH)
    assert pb.Command(sequence=far, adopt=adopt).ByteSize() < limit
    assert encode_results(far, {n: result(n, VOCAB) for n in range(len(plan.chunks))}).ByteSize() < limit
    copies = encode_copies([PageCopy(last, last, last, True)] * COPIES)
    assert pb.Command(sequence=far, copy=copies).ByteSize() < limit
    masks = encode_masks([last] * WIDE.slots, np.zeros((WIDE.slots, mask_words(VOCAB)), np.uint32))
    assert pb.Command(sequence=far, masks=masks).ByteSize() < limit
    assert limit < 2**22
