"""What a client may not say: the status, a message that says what is allowed, and nothing is left of it."""

import math
import threading

import grpc
import pytest

from medha_jax.client import Accepted, Client
from medha_jax.client.connection import SERVICE
from medha_jax.protos import inference_pb2 as pb
from tests.server.conftest import CONTEXT
from tests.server.processes import idle, refusal, wait_until

IDS = (5, 6, 7)
INVALID = "INVALID_ARGUMENT"
CASES = {
    "empty text": ("", {}, INVALID, "at least one character"),
    "no ids": ((), {}, INVALID, "at least one token"),
    "id beyond the vocabulary": ((5, 320), {}, INVALID, "token id 320 is outside the vocabulary; allowed are 0 to 319"),
    "largest id": ((2**32 - 1,), {}, INVALID, "allowed are 0 to 319"),
    "prompt fills the context": ((5,) * CONTEXT, {}, "OUT_OF_RANGE", f"allowed are {CONTEXT - 1}"),
    "prompt and output beyond the context": (IDS, dict(max_tokens=510), "OUT_OF_RANGE", "max_tokens may be 509"),
    "output beyond any": (IDS, dict(max_tokens=2**32 - 1), INVALID, "allowed is [1, 511]"),
    "no output": (IDS, dict(max_tokens=0), INVALID, "allowed is [1, inf)"),
    "min above max": (IDS, dict(max_tokens=2, min_tokens=3), INVALID, "allowed is [0, 2]"),
    "temperature NaN": (IDS, dict(temperature=math.nan), INVALID, "temperature is nan; allowed is [0, 100]"),
    "temperature infinite": (IDS, dict(temperature=math.inf), INVALID, "allowed is [0, 100]"),
    "temperature negative": (IDS, dict(temperature=-0.1), INVALID, "allowed is [0, 100]"),
    "top_k": (IDS, dict(top_k=-2), INVALID, "top_k is -2; allowed is [-1, inf)"),
    "top_p zero": (IDS, dict(top_p=0), INVALID, "allowed is (0, 1]"),
    "top_p NaN": (IDS, dict(top_p=math.nan), INVALID, "allowed is (0, 1]"),
    "min_p": (IDS, dict(min_p=1.5), INVALID, "allowed is [0, 1]"),
    "repetition penalty": (IDS, dict(repetition_penalty=0), INVALID, "allowed is (0, 2]"),
    "presence penalty": (IDS, dict(presence_penalty=-math.inf), INVALID, "allowed is [-2, 2]"),
    "frequency penalty": (IDS, dict(frequency_penalty=2.1), INVALID, "allowed is [-2, 2]"),
    "seed": (IDS, dict(seed=-1), INVALID, "seed is -1; allowed is [0, "),
    "too many stops": (IDS, dict(stop=["a"] * 17), INVALID, "17 stop strings; allowed are 16"),
    "empty stop": (IDS, dict(stop=[""]), INVALID, "allowed are 1 to 256"),
    "long stop": (IDS, dict(stop=["a" * 257]), INVALID, "allowed are 1 to 256"),
    "too many stop ids": (IDS, dict(stop_token_ids=[1] * 17), INVALID, "17 stop token ids; allowed are 16"),
    "stop id beyond the vocabulary": (IDS, dict(stop_token_ids=[320]), INVALID, "allowed are 0 to 319"),
    "too many logprobs": (IDS, dict(logprobs=21), INVALID, "allowed is [0, 20]"),
    "bias too large": (IDS, dict(logit_bias={5: 101}), INVALID, "logit_bias of token id 5 is 101.0; allowed is [-100"),
    "bias NaN": (IDS, dict(logit_bias={5: math.nan}), INVALID, "logit_bias of token id 5 is nan"),
    "bias beyond the vocabulary": (IDS, dict(logit_bias={320: 1}), INVALID, "logit_bias: token id 320 is outside"),
    "too many biases": (
        IDS,
        dict(logit_bias=dict.fromkeys(range(301), 1)),
        INVALID,
        "has 301 entries; allowed are 300",
    ),
    "no token allowed": (
        IDS,
        dict(allowed_token_ids=()),
        INVALID,
        "allowed_token_ids has 0 ids; allowed are 1 to 1024",
    ),
    "too many allowed": (IDS, dict(allowed_token_ids=[5] * 1025), INVALID, "has 1025 ids; allowed are 1 to 1024"),
    "allowed beyond the vocabulary": (IDS, dict(allowed_token_ids=[5, 320]), INVALID, "allowed are 0 to 319"),
    "ttft zero": (IDS, dict(ttft_ms=0), INVALID, "slo.ttft_ms is 0.0; allowed are milliseconds above 0"),
    "ttft NaN": (IDS, dict(ttft_ms=math.nan), INVALID, "milliseconds above 0"),
    "tpot infinite": (IDS, dict(tpot_ms=math.inf), INVALID, "milliseconds above 0"),
    "long salt": (IDS, dict(cache_salt="a" * 129), INVALID, "cache_salt has 129 characters; allowed are 128"),
    "empty id": (IDS, dict(request_id=""), INVALID, "allowed are 1 to 128"),
    "long id": (IDS, dict(request_id="a" * 129), INVALID, "allowed are 1 to 128"),
    "id with a line end": (IDS, dict(request_id="a\nb"), INVALID, "visible ASCII"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_field_is_refused_with_what_is_allowed(client, case):
    prompt, settings, code, message = CASES[case]
    error = refusal(client.generate(prompt, **settings))
    assert error.code == code and message in error.message, error
    assert idle(client)


def raw(server, method, *messages, stream=False):
    """The status of a call whose messages are these bytes."""
    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream(SERVICE + method) if stream else channel.unary_stream(SERVICE + method)
        try:
            list(call(iter(messages) if stream else messages[0], timeout=20))
        except grpc.RpcError as error:
            return error.code().name, error.details()
    return "OK", ""


@pytest.mark.parametrize("data", [b"\xff" * 40, b"\x0a\x05abc", b"\x0a\x02\xff\xfe"], ids=["tag", "cut", "not UTF-8"])
def test_garbage_bytes_are_no_request(server, client, data):
    code, message = raw(server, "Generate", data)
    assert code == INVALID and "no medha.v1.GenerateRequest" in message
    assert idle(client)


def test_an_empty_message_has_no_prompt(server):
    assert raw(server, "Generate", b"") == (INVALID, "the request has no prompt; give text, token_ids or chat")


def test_an_unknown_enum_value_is_refused(server):
    request = pb.GenerateRequest(text="a", settings=pb.GenerateSettings(on_deadline=7))
    code, message = raw(server, "Generate", request.SerializeToString())
    assert code == INVALID and "on_deadline is 7" in message and "ON_DEADLINE_DROP" in message


def test_a_priority_that_is_no_class_is_refused(server):
    request = pb.GenerateRequest(text="a", settings=pb.GenerateSettings(priority=3))
    code, message = raw(server, "Generate", request.SerializeToString())
    assert code == "INVALID_ARGUMENT" and "priority is 3; allowed are -2, which goes first, to 2" in message


def test_an_oversized_message_is_refused(client):
    limit = client.model().max_message_bytes
    error = refusal(client.generate("a" * (limit + 1)))
    assert error.code == "RESOURCE_EXHAUSTED" and str(limit) in error.message


def test_a_text_that_is_too_long_is_not_even_tokenised(client):
    error = refusal(client.generate("a" * (8 * CONTEXT + 1)))
    assert error.code == "OUT_OF_RANGE" and f"allowed are {8 * CONTEXT}" in error.message


def test_an_id_is_taken_once_at_a_time(client):
    running = client.generate(IDS, max_tokens=400, ignore_eos=True, request_id="twice")
    assert isinstance(next(running), Accepted)
    error = refusal(client.generate(IDS, request_id="twice", max_tokens=1))
    assert error.code == "ALREADY_EXISTS" and "twice" in error.message
    running.close()
    wait_until(lambda: idle(client))
    list(client.generate(IDS, request_id="twice", max_tokens=1))


def test_a_prompt_in_parts_is_checked_part_by_part(server, client):
    def parts(*parts):
        return raw(server, "GenerateStream", *[part.SerializeToString() for part in parts], stream=True)

    def start(tokens, **settings):
        settings = pb.GenerateSettings(sampling=pb.SamplingSettings(**settings))
        return pb.GeneratePart(start=pb.GenerateStart(settings=settings, prompt_tokens=tokens))

    def ids(*ids):
        return pb.GeneratePart(token_ids=pb.PromptIds(ids=ids))

    assert parts() == (INVALID, "the first part has no settings; give start, then token_ids")
    assert parts(ids(5))[1].startswith("the first part has no settings")
    assert parts(start(3)) == (INVALID, "the prompt is empty; give token_ids after start")
    assert parts(start(0), ids(5))[0] == "OUT_OF_RANGE"
    assert parts(start(CONTEXT), ids(5))[0] == "OUT_OF_RANGE"
    assert parts(start(3), ids(5), ids())[0] == INVALID
    assert parts(start(3), ids(5), start(3))[0] == INVALID
    assert parts(start(3), ids(5), ids(320)) == (
        INVALID,
        "token id 320 is outside the vocabulary; allowed are 0 to 319",
    )
    code, message = parts(start(3), ids(5), ids(6, 7, 8))
    assert code == INVALID and "allowed are 3" in message
    assert raw(server, "GenerateStream", b"\xff" * 9, stream=True)[0] == INVALID
    assert parts(start(3, max_tokens=2), ids(5), ids(6)) == ("OK", "")
    wait_until(lambda: idle(client))


def test_bad_input_disturbs_nobody(server, client):
    """What runs beside every kind of bad input gives what it gives alone."""
    wanted = dict(max_tokens=60, ignore_eos=True)
    alone = list(client.generate(IDS, **wanted))[1:-1]
    stop = threading.Event()

    def disturb():
        with Client(server.address) as other:
            while not stop.is_set():
                for prompt, settings, _, _ in CASES.values():
                    refusal(other.generate(prompt, **settings))

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        beside = list(client.generate(IDS, **wanted))[1:-1]
    finally:
        stop.set()
        thread.join()
    assert [token for delta in beside for token in delta.token_ids] == [
        token for delta in alone for token in delta.token_ids
    ]
