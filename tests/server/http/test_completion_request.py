import json

import pytest
from grpc import StatusCode
from hypothesis import example, given
from hypothesis import strategies as st

from medha_jax.config import BUNDLED_MODEL
from medha_jax.server.http.completion_request import DEFAULT_TOKENS, MOST_PROMPTS, read_completion
from medha_jax.server.http.errors import body_of, encoded, status_of
from medha_jax.server.http.json_fields import read_json
from medha_jax.server.http.settings_fields import Streaming
from medha_jax.server.refusal import Refusal
from medha_jax.server.request_parser import RequestParser, ServedModel
from medha_jax.server.settings import Limits
from medha_jax.text import Tokenizer
from tests.server.http.any_json import NAMES, TEXTS, VALUES, outcome

PARSER = RequestParser(ServedModel("small", Tokenizer.from_directory(BUNDLED_MODEL), 2048, 512), Limits())
PROMPTS = TEXTS | st.lists(TEXTS, max_size=3) | st.lists(st.integers(-2, 2**33), max_size=4) | VALUES


def read(given, headers=None):
    return read_completion(given, headers or {}, PARSER)


def refused(given, headers=None):
    with pytest.raises(Refusal) as raised:
        read(given, headers)
    assert raised.value.code in (StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, StatusCode.OUT_OF_RANGE)
    return getattr(raised.value, "param", None), raised.value.message


@given(
    st.fixed_dictionaries({"prompt": PROMPTS}, optional={"n": st.integers(), "logprobs": st.integers(-1, 2**33)}),
    st.dictionaries(NAMES, VALUES, max_size=4),
    st.dictionaries(st.sampled_from(["x-request-id", "x-slo-ttft-ms"]), st.text(max_size=8)),
)
@example({"prompt": "a"}, {"echo": True, "logprobs": 1}, {})
@example({"prompt": "\ud800"}, {"echo": True, "logprobs": 1}, {})
@example({"prompt": [[1], "b"]}, {"n": 2**31 - 1}, {})
@example({"prompt": [10**400]}, {}, {})
@example({"prompt": [-1]}, {"echo": True, "logprobs": 0}, {})
@example({"prompt": ""}, {"echo": True, "logprobs": 0}, {})
def test_any_json_gives_requests_or_a_refusal(prompt, others, headers):
    asked, refusal = outcome(read, others | prompt, headers)
    if refusal is not None:
        assert 400 <= status_of(refusal) < 500
        error = json.loads(encoded(body_of(refusal)))["error"]
        assert error["message"] == refusal.message != ""
        return
    assert len(asked.requests) == asked.prompts <= MOST_PROMPTS and asked.n >= 1
    assert all(request.WhichOneof("prompt") for request in asked.requests)
    assert len({request.settings.request_id for request in asked.requests}) == asked.prompts
    assert len(asked.echoed) in (0, asked.prompts)


@given(VALUES)
def test_any_body_gives_requests_or_a_refusal(value):
    asked, refusal = outcome(lambda: read(read_json(json.dumps(value).encode())))
    assert (asked is None) != (refusal is None)


def test_one_prompt():
    asked = read({"prompt": "hello", "model": "small", "request_id": "mine", "user": "me"})
    (request,) = asked.requests
    assert request.text == "hello" and not request.HasField("add_special_tokens") and request.n == 1
    assert request.settings.request_id == asked.id == "mine"
    assert request.settings.sampling.max_tokens == DEFAULT_TOKENS and not request.settings.progress
    assert (asked.prompts, asked.n, asked.logprobs, asked.echoed) == (1, 1, None, ())
    assert asked.streaming == Streaming() and asked.ignored == ("user",)


def test_ids_and_lists_of_prompts():
    (request,) = read({"prompt": [5, 6, 7]}).requests
    assert list(request.token_ids.ids) == [5, 6, 7]
    asked = read({"prompt": ["a", [5, 6], "a"], "n": 2, "stream": True}, {"x-request-id": "mine"})
    assert [request.WhichOneof("prompt") for request in asked.requests] == ["text", "token_ids", "text"]
    assert [request.settings.request_id for request in asked.requests] == ["mine-0", "mine-1", "mine-2"]
    assert all(request.n == 2 and request.settings.progress for request in asked.requests) and asked.id == "mine"
    assert read({"prompt": ["a"] * MOST_PROMPTS}).prompts == MOST_PROMPTS


def test_a_prompt_that_is_echoed_with_log_probabilities_is_ids():
    asked = read({"prompt": ["hello", [7, 8]], "echo": True, "logprobs": 2})
    ids = [list(request.token_ids.ids) for request in asked.requests]
    assert ids == [list(PARSER.tokens("hello")), [7, 8]] and asked.echoed == (ids[0][0], 7)
    sampling = asked.requests[0].settings.sampling
    assert sampling.prompt_logprobs == sampling.logprobs == asked.logprobs == 2
    assert asked.requests[0].settings.echo
    only = read({"prompt": "hello", "echo": True})
    assert only.requests[0].text == "hello" and only.requests[0].settings.echo and only.echoed == ()
    assert not only.requests[0].settings.sampling.HasField("logprobs")


PLAIN = {"prompt": "a"}


@pytest.mark.parametrize(
    "given, param, said",
    [
        ({}, "prompt", "prompt is missing; allowed is a text, a list of token ids, or a list of texts or of lists"),
        ({"prompt": None}, "prompt", "prompt is missing"),
        ({"prompt": []}, "prompt", "prompt is a list; allowed is a text, a list of token ids"),
        ({"prompt": [[]]}, "prompt", "prompt is a list; allowed is at least one token id"),
        ({"prompt": ["a", 5]}, "prompt", "prompt is a list; allowed is"),
        ({"prompt": [1, True]}, "prompt", "prompt is a list; allowed is"),
        ({"prompt": 5}, "prompt", "prompt is 5; allowed is"),
        ({"prompt": [-1]}, "prompt", "a token id that no vocabulary has"),
        ({"prompt": [2**32]}, "prompt", "a token id that no vocabulary has"),
        ({"prompt": "\ud800"}, "prompt", "prompt is not valid Unicode (lone surrogates)"),
        ({"prompt": ["a"] * 257}, "prompt", "the request has 257 prompts; allowed are 256"),
        (PLAIN | {"n": 0}, "n", "n is 0; allowed is 1 or more"),
        (PLAIN | {"n": 2**31}, "n", "allowed is 1 or more"),
        (PLAIN | {"n": "2"}, "n", "n is '2'; allowed is a whole number"),
        (PLAIN | {"best_of": 3}, "best_of", "best_of must equal n"),
        (PLAIN | {"suffix": "end"}, "suffix", "texts are not filled in here; leave it out"),
        (PLAIN | {"logprobs": -1}, "logprobs", "logprobs is -1; allowed is [0, 20]"),
        (PLAIN | {"logprobs": True}, "logprobs", "logprobs is true; allowed is a whole number"),
        (PLAIN | {"logprobs": 2**32}, "logprobs", "allowed is [0, 20]"),
        (PLAIN | {"echo": 1}, "echo", "echo is 1; allowed is true or false"),
        (PLAIN | {"model": "other"}, "model", "the model 'other' is not served; small is"),
        (PLAIN | {"model": 5}, "model", "model is 5; allowed is a text"),
        (PLAIN | {"messages": []}, "messages", "unknown fields: messages; "),
        (PLAIN | {"request_id": ""}, "request_id", "allowed are 1 to 128 of visible ASCII"),
        ({"prompt": ["a", "b"], "request_id": ""}, "request_id", "allowed are 1 to 128 of visible ASCII"),
        ({"prompt": ["a", "b"], "request_id": "a b"}, "request_id", "allowed are 1 to 128 of visible ASCII"),
        (PLAIN | {"request_id": "a" * 129}, "request_id", "has 129 characters; allowed are 1 to 128"),
        (
            {"prompt": ["a"] * 2, "request_id": "a" * 127},
            "request_id",
            "has 127 characters; allowed are 126 for 2 prompts",
        ),
        ({"prompt": ["a"] * 11, "request_id": "a" * 126}, "request_id", "allowed are 125 for 11 prompts"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(given, param, said):
    named, message = refused(given)
    assert named == param and said in message


def test_another_model_is_not_found():
    with pytest.raises(Refusal) as raised:
        read(PLAIN | {"model": "other"})
    assert status_of(raised.value) == 404 and body_of(raised.value)["error"]["code"] == "model_not_found"
