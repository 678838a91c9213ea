"""Structured output over a real connection: what comes follows what was stated, and what cannot be is refused."""

import json
import re
import threading

import grpc
import jsonschema
import pytest

from medha_jax.client import Client, Delta, Finished, InvalidSettingError, Structured
from medha_jax.client.connection import SERVICE
from medha_jax.protos import inference_pb2 as pb
from tests.grammar.test_grammar_compiler import HOURS
from tests.server.processes import idle, refusal, wait_until

PROMPT = [7 + n % 50 for n in range(70)]
SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}, "sizes": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}},
    "required": ["on", "sizes"],
    "additionalProperties": False,
}
SAMPLED = dict(temperature=1.0, seed=3, max_tokens=400)


def outputs(events):
    """Text and last event of each output."""
    texts, ends = {}, {}
    for event in events:
        if isinstance(event, Delta):
            texts[event.index] = texts.get(event.index, "") + event.text
        elif isinstance(event, Finished):
            ends[event.index] = event
    return [(texts[index], ends[index]) for index in sorted(ends)]


def holds(text, end):
    jsonschema.validate(json.loads(text), SCHEMA)
    assert end.reason == "stop" and end.matched is None


def test_each_output_holds_and_is_what_its_seed_gives(client, monkeypatch):
    structured = Structured(json_schema=SCHEMA)
    several = outputs(client.generate(PROMPT, structured=structured, n=3, **SAMPLED))
    assert len(several) == 3
    for text, end in several:
        holds(text, end)
    monkeypatch.setattr("medha_jax.client.connection.PART_TOKENS", 16)
    as_text = Structured(json_schema=json.dumps(SCHEMA))
    ((text, end),) = outputs(client.generate(PROMPT, structured=as_text, **SAMPLED | {"seed": 4}))
    holds(text, end)
    assert text == several[1][0], "the second output has the seed after the first one's, also in parts"


def test_every_kind_is_followed(client):
    ((text, _),) = outputs(client.generate("a", structured=Structured(regex="[a-f]{2}[.](x|yz)"), **SAMPLED))
    assert re.fullmatch("[a-f]{2}[.](x|yz)", text)
    ((text, _),) = outputs(client.generate("a", structured=Structured(grammar='start: "(" start ")" | "."'), **SAMPLED))
    assert re.fullmatch("[(]*[.][)]*", text) and text.count("(") == text.count(")")
    ((text, end),) = outputs(client.generate("a", structured=Structured(json_object=True), **SAMPLED))
    assert text.lstrip().startswith("{") and (end.reason == "length" or isinstance(json.loads(text), dict))


REFUSED = {
    "no JSON": (dict(structured=Structured(json_schema="{")), "structured: json_schema: EOF while parsing"),
    "nothing holds": (dict(structured=Structured(json_schema="false")), "structured: json_schema: Unsatisfiable"),
    "no such keyword": (dict(structured=Structured(json_schema={"uniqueItems": True})), "Unimplemented keys"),
    "a regex": (dict(structured=Structured(regex="(")), "structured: regex: "),
    "a grammar": (dict(structured=Structured(grammar="start: b")), 'unknown name: "b"'),
    "too long": (dict(structured=Structured(regex="a" * 5000)), "regex has 5000 bytes; allowed are 4096"),
    "goes on": (dict(structured=Structured(regex="a+"), ignore_eos=True), "ignore_eos goes on after the end"),
    "two rules": (dict(structured=Structured(regex="a+"), allowed_token_ids=[5]), "give one of the two"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused_with_the_reason(case, client):
    stated, reason = REFUSED[case]
    error = refusal(client.generate(PROMPT, max_tokens=4, **stated))
    assert error.code == "INVALID_ARGUMENT" and reason in error.message
    wait_until(lambda: idle(client))


def test_a_grammar_that_takes_hours_is_refused_in_time_and_delays_nobody(server, client):
    refused = []

    def ask():
        with Client(server.address) as other:
            refused.append(refusal(other.generate(PROMPT, structured=Structured(json_schema=HOURS))))

    asking = threading.Thread(target=ask)
    asking.start()
    answered = 0
    while asking.is_alive():
        *_, end = client.generate("a", max_tokens=2, ignore_eos=True, temperature=0)
        assert isinstance(end, Finished)
        answered += 1
    assert answered >= 1 and refused[0].code == "INVALID_ARGUMENT" and "not compiled within 2 s" in refused[0].message
    ((text, end),) = outputs(client.generate(PROMPT, structured=Structured(json_schema=SCHEMA), **SAMPLED))
    holds(text, end)


def test_exactly_one_kind_is_stated(server, client):
    for wrong in (Structured(), Structured(regex="a", json_object=True), Structured(json_schema={"a": {1}})):
        with pytest.raises(InvalidSettingError, match="exactly one of|is no JSON"):
            client.generate(PROMPT, structured=wrong)
    with pytest.raises(InvalidSettingError, match="regex is not valid Unicode"):
        client.generate(PROMPT, structured=Structured(regex="\udcff"))
    for empty in (pb.StructuredOutput(), pb.StructuredOutput(json_object=False)):
        asked = pb.GenerateRequest(text="a", settings=pb.GenerateSettings(structured=empty))
        with grpc.insecure_channel(server.address) as channel:
            call = channel.unary_stream(SERVICE + "Generate", request_serializer=lambda one: one.SerializeToString())
            with pytest.raises(grpc.RpcError) as error:
                list(call(asked))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT and "states nothing" in error.value.details()
