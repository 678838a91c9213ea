import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.http.errors import FieldRefusal
from medha_jax.server.http.json_fields import Fields, checked_text
from medha_jax.server.http.settings_fields import (
    Streaming,
    milliseconds,
    read_settings,
    read_streaming,
)
from tests.server.http.any_json import NAMES, VALUES, outcome


def read(given, headers=None, most=16):
    fields = Fields(given)
    settings = read_settings(fields, headers or {}, most)
    fields.end()
    return settings


def refused(given, headers=None):
    with pytest.raises(FieldRefusal) as raised:
        read(given, headers)
    return raised.value.param, raised.value.message


def test_every_field_reaches_its_setting():
    given = {
        "temperature": 0.5,
        "top_p": 0.75,
        "min_p": 0.25,
        "repetition_penalty": 1.5,
        "presence_penalty": -1,
        "frequency_penalty": 1,
        "top_k": 5,
        "seed": 2**40,
        "min_tokens": 2,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "max_tokens": 9,
        "stop": "end",
        "stop_token_ids": [3],
        "allowed_token_ids": [5, 6],
        "logit_bias": {"5": 1.5},
        "priority": -2,
        "cache_salt": "salt",
        "request_id": "mine",
        "on_deadline": "drop",
    }
    headers = {"x-slo-ttft-ms": "250", "x-slo-tpot-ms": "12.5", "x-request-id": "of the header"}
    sampling = pb.SamplingSettings(
        temperature=0.5,
        top_p=0.75,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=-1,
        frequency_penalty=1,
        top_k=5,
        seed=2**40,
        min_tokens=2,
        ignore_eos=True,
        include_stop=True,
        skip_special_tokens=False,
        max_tokens=9,
        stop=["end"],
        stop_token_ids=[3],
        allowed_token_ids=pb.AllowedTokens(ids=[5, 6]),
        logit_bias={5: 1.5},
    )
    assert read(given, headers) == pb.GenerateSettings(
        sampling=sampling,
        slo=pb.SloSettings(ttft_ms=250, tpot_ms=12.5),
        priority=-2,
        cache_salt="salt",
        request_id="mine",
        on_deadline=pb.ON_DEADLINE_DROP,
    )


def test_what_is_not_stated_is_not_set():
    settings = read({}, {"x-request-id": "abc"}, None)
    assert settings == pb.GenerateSettings(sampling=pb.SamplingSettings(), request_id="abc")
    assert read({}).sampling.max_tokens == 16
    assert read({"max_completion_tokens": 5}).sampling.max_tokens == 5
    assert read({"max_completion_tokens": 5, "max_tokens": 5}).sampling.max_tokens == 5
    assert read({}).request_id != read({}).request_id != ""
    assert read({"allowed_token_ids": []}).sampling.HasField("allowed_token_ids")


@pytest.mark.parametrize(
    "given, param, said",
    [
        ({"temperature": "hot"}, "temperature", "temperature is 'hot'; allowed is a number"),
        ({"temperature": 10**400}, "temperature", "allowed is a number"),
        ({"seed": -(2**64)}, "seed", "which is out of every range"),
        ({"seed": 2**64}, "seed", "which is out of every range"),
        ({"top_k": 1e300}, "top_k", "which is out of every range"),
        ({"max_tokens": -1}, "max_tokens", "max_tokens is -1, which is out of every range"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "they mean the same, so give one of them"),
        ({"stop": ["a", 1]}, "stop", "allowed is a text or a list of texts"),
        ({"stop": "\ud800"}, "stop", "stop is not valid Unicode (lone surrogates)"),
        ({"stop_token_ids": [2**32]}, "stop_token_ids", "allowed are 0 to 4294967295"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids", "allowed are 0 to 4294967295"),
        ({"logit_bias": {"4294967296": 1}}, "logit_bias", "which no vocabulary has"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "allowed is an object of numbers by token id"),
        ({"cache_salt": "\udfff"}, "cache_salt", "out of every range"),
        ({"on_deadline": "wait"}, "on_deadline", "on_deadline is 'wait'; allowed is continue or drop"),
        ({"store": True}, "store", "nothing is stored here"),
        ({"use_beam_search": True}, "use_beam_search", "beams are not searched here"),
        ({"length_penalty": 2}, "length_penalty", "beams are not searched here"),
        ({"spaces_between_special_tokens": False}, "spaces_between_special_tokens", "as the tokenizer gives it"),
        ({"max_token": 5}, "max_token", "unknown fields: max_token; "),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(given, param, said):
    named, message = refused(given)
    assert named == param and said in message


@given(st.dictionaries(NAMES, VALUES, max_size=6), st.dictionaries(st.sampled_from(["x-request-id"]), st.text()))
@example({"temperature": 10**400}, {})
@example({"logit_bias": {"5": 10**400}}, {})
def test_any_json_gives_settings_or_a_refusal(given, headers):
    fields = Fields(given)
    read, refusal = outcome(lambda: (read_streaming(fields), read_settings(fields, headers, 16)))
    if refusal is not None:
        assert refusal.param
    else:
        streaming, settings = read
        assert isinstance(streaming, Streaming)
        assert pb.GenerateSettings.FromString(settings.SerializeToString()) is not None
        assert all(math.isfinite(bias) for bias in settings.sampling.logit_bias.values())


def test_how_an_answer_comes():
    assert read_streaming(Fields({})) == Streaming()
    options = {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": False}
    given = {"stream": True, "stream_options": options, "return_token_ids": True}
    assert read_streaming(Fields(given)) == Streaming(True, True, True, True)
    for wrong, param in (
        ({"stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"stream": "yes"}, "stream"),
    ):
        with pytest.raises(FieldRefusal) as raised:
            read_streaming(Fields(wrong))
        assert raised.value.param == param


@given(st.text() | st.floats().map(str) | st.integers().map(str))
@example("nan")
@example("inf")
@example("-1")
@example("0")
@example("1e400")
@example("")
def test_milliseconds_are_above_zero_or_refused(stated):
    value, refusal = outcome(milliseconds, {"x-slo-ttft-ms": stated}, "x-slo-ttft-ms")
    if refusal is not None:
        assert refusal.param == "x-slo-ttft-ms" and "allowed are milliseconds above 0" in refusal.message
    else:
        assert 0 < value < math.inf
    assert milliseconds({}, "x-slo-ttft-ms") is None


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_a_text_is_utf_8_or_refused(text):
    read, refusal = outcome(checked_text, "prompt", text)
    broken = any("\ud800" <= letter <= "\udfff" for letter in text)
    assert read is (None if broken else text)
    assert (refusal is not None and refusal.param == "prompt") == broken
