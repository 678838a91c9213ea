import json
import math

from hypothesis import given
from hypothesis import strategies as st

from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.http.token_texts import (
    Scored,
    chat_logprobs,
    completion_logprobs,
    scored_output,
    scored_prompt,
)

LOGPROBS = st.floats(max_value=0, allow_nan=False)
TOKENS = st.lists(
    st.builds(
        Scored,
        st.integers(0, 99),
        st.none() | LOGPROBS,
        st.lists(st.tuples(st.integers(0, 99), LOGPROBS), max_size=4),
    ),
    max_size=6,
)


def text_of(token_id):
    """Several ids share a text, and one has none."""
    return "ab€😀"[: token_id % 5]


@given(TOKENS, st.integers(0, 9), st.integers(0, 5))
def test_completions_have_four_lists_of_one_length(tokens, offset, top):
    found = completion_logprobs(tokens, text_of, offset, top)
    assert set(found) == {"text_offset", "token_logprobs", "tokens", "top_logprobs"}
    assert {len(value) for value in found.values()} == {len(tokens)}
    for place, text in zip(found["text_offset"], found["tokens"], strict=True):
        assert place == offset
        offset += len(text)
    for one, logprob, likeliest in zip(tokens, found["token_logprobs"], found["top_logprobs"], strict=True):
        assert (logprob is None) == (likeliest is None) == (one.logprob is None)
        if likeliest is not None:
            assert text_of(one.token_id) in likeliest and len(likeliest) <= top + 1
    json.dumps(found, allow_nan=False)


@given(TOKENS, st.integers(0, 5))
def test_chats_have_an_entry_a_token(tokens, top):
    found = chat_logprobs(tokens, text_of, top)
    assert [one["token"] for one in found["content"]] == [text_of(one.token_id) for one in tokens]
    for one in found["content"]:
        assert bytes(one["bytes"]).decode() == one["token"] and len(one["top_logprobs"]) <= top
    json.dumps(found, allow_nan=False)


def test_minus_infinity_has_a_number():
    tokens = [Scored(1, -math.inf, [(2, -0.5), (3, -math.inf)])]
    found = completion_logprobs(tokens, str, 0, 2)
    assert found["token_logprobs"] == [-9999.0]
    assert found["top_logprobs"] == [{"2": -0.5, "3": -9999.0, "1": -9999.0}]


def test_of_ids_with_one_text_the_likeliest_counts():
    found = completion_logprobs([Scored(6, -3.0, [(1, -1.0), (11, -2.0)])], text_of, 0, 2)
    assert found["top_logprobs"] == [{"a": -1.0}]


def test_messages_are_read():
    output = [pb.TokenLogprob(token_id=5, logprob=-1, top=[pb.TopLogprob(token_id=6, logprob=-0.5)])]
    assert scored_output(output) == [Scored(5, -1, [(6, -0.5)])]
    prompt = pb.PromptLogprobs(
        start=1,
        token_ids=[5, 6],
        logprobs=[-1, -2],
        top=2,
        top_token_ids=[1, 2, 3, 4],
        top_logprobs=[-0.25, -0.5, -0.75, -1],
    )
    assert scored_prompt(prompt) == [Scored(5, -1, [(1, -0.25), (2, -0.5)]), Scored(6, -2, [(3, -0.75), (4, -1)])]
    bare = pb.PromptLogprobs(start=1, token_ids=[5, 6], logprobs=[-1, -2])
    assert scored_prompt(bare) == [Scored(5, -1), Scored(6, -2)]
