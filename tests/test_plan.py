from __future__ import annotations

import math

import pytest

from medha_jax.plan import Chunk, InvalidRequestError, SamplingParams


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": math.nan}, "temperature is nan; allowed is [0, 100]"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"top_k": -2}, "top_k is -2; allowed is [-1, inf)"),
        ({"top_p": 0.0}, "top_p is 0.0; allowed is (0, 1]"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": -1}, "min_p is -1; allowed is [0, 1]"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; allowed is (0, 2]"),
        ({"presence_penalty": 2.5}, "allowed is [-2, 2]"),
        ({"frequency_penalty": math.nan}, "frequency_penalty is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"max_tokens": 0}, "max_tokens is 0; allowed is [1, inf)"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens is 4; allowed is [0, 3] (max_tokens)"),
        ({"logprobs": 21}, "logprobs is 21; allowed is [0, 20]"),
        ({"stop_token_ids": tuple(range(17))}, "17 stop token ids; allowed are 16"),
        ({"stop_token_ids": (4, -1)}, "stop token id -1; allowed are 0 and more"),
        ({"logit_bias": tuple((n, 0.0) for n in range(301))}, "logit_bias has 301 entries; allowed are 300"),
        ({"logit_bias": ((3, 1.0), (3, 2.0))}, "logit_bias has two entries of one token id"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias has token id -1; allowed are 0 and more"),
        ({"logit_bias": ((3, 100.5),)}, "logit_bias of token id 3 is 100.5; allowed is [-100, 100]"),
        ({"logit_bias": ((3, -math.inf),)}, "logit_bias of token id 3 is -inf"),
        ({"logit_bias": ((3, math.nan),)}, "logit_bias of token id 3 is nan"),
        ({"allowed_token_ids": ()}, "allowed_token_ids has 0 ids; allowed are 1 to 1024"),
        ({"allowed_token_ids": (1,) * 1025}, "allowed_token_ids has 1025 ids; allowed are 1 to 1024"),
        ({"allowed_token_ids": (4, -1)}, "allowed_token_ids has -1; allowed are 0 and more"),
        ({"stop": ("x",) * 17}, "17 stop strings; allowed are 16"),
        ({"stop": ("",)}, "a stop string has 0 characters; allowed are 1 to 256"),
    ],
)
def test_values_out_of_range_are_refused_with_what_is_allowed(settings: dict, message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**settings)
    assert message in str(caught.value)


def test_the_edges_are_allowed() -> None:
    SamplingParams(temperature=0, top_k=-1, top_p=1, min_p=1, repetition_penalty=2, seed=2**63 - 1, logprobs=20)
    biased = tuple((token, 100.0 if token % 2 else -100) for token in range(300))
    SamplingParams(logit_bias=biased, allowed_token_ids=tuple(range(1024)))


def test_the_context_after_a_chunk() -> None:
    assert Chunk(slot=0, start=5, length=3, tokens=(1, 2, 3), last=False).end == 8
