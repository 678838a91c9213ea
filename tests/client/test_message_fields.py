"""Whatever is asked of a client: an answer, or one line that says what is allowed, before or after the sending."""

import asyncio
import math
import re

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.client import AsyncClient, Client, Finished, InvalidSettingError, ServerError, Structured
from medha_jax.client.connection import PART_TOKENS
from medha_jax.client.message_fields import NO_TIMEOUT, seconds_left
from medha_jax.protos import inference_pb2 as pb
from tests.server.processes import SIMULATED, ServerProcess

WHOLE = [0, 1, -1, 2**31 - 1, 2**31, -(2**31) - 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**5000]
REAL = [0.0, 5e-324, 1e-300, 1e-46, 1e-38, -5e-324, 1.0, 2.0, 100.0, 1e38, 1e39, 1e308, math.nan, math.inf, -math.inf]
TEXTS = ["", "a", "\x00", "\udcff", "é😀", "a" * 300]
REFUSED = ("INVALID_ARGUMENT", "OUT_OF_RANGE")


def of_field(field):
    """Absurd values for a field of a message, as Python users may give them."""
    if field.message_type and field.message_type.GetOptions().map_entry:
        pairs = st.tuples(st.sampled_from(WHOLE), st.sampled_from(REAL))
        return st.none() | st.lists(pairs, max_size=3).map(dict)
    if field.message_type:
        return st.none() | of_field(field.message_type.fields[0])
    if field.type == FieldDescriptor.TYPE_STRING:
        values = st.sampled_from(TEXTS)
    elif field.type == FieldDescriptor.TYPE_DOUBLE:
        values = st.sampled_from(REAL) | st.floats()
    elif field.type == FieldDescriptor.TYPE_BOOL:
        values = st.booleans()
    else:
        values = st.sampled_from(WHOLE) | st.integers(-100, 300)
    return st.lists(values, max_size=3) if field.is_repeated else st.none() | values


SAMPLING = {
    field.name: of_field(field) for field in pb.SamplingSettings.DESCRIPTOR.fields if field.name != "max_tokens"
}
OTHERS = {
    "ttft_ms": st.none() | st.sampled_from(REAL),
    "tpot_ms": st.none() | st.sampled_from(REAL),
    "request_id": st.none() | st.sampled_from(TEXTS),
    "cache_salt": st.none() | st.sampled_from(TEXTS),
    "max_tokens": st.integers(1, 3) | st.sampled_from(WHOLE[:1] + WHOLE[2:]),
}
PROMPTS = st.sampled_from(["a", "\udcff", ""]) | st.lists(st.sampled_from([5, 7, *WHOLE]), max_size=3)


@pytest.fixture(scope="module")
def server():
    with ServerProcess(*SIMULATED, "--tick-ms", 0.1, "--context", 512) as started:
        yield started


@pytest.fixture(scope="module")
def client(server):
    with Client(server.address) as connected:
        yield connected


def outcome(client, prompt, stated):
    """The last event, or the one line of a refusal that was sent or kept back."""
    try:
        *_, last = client.generate(prompt, timeout=60, **stated)
    except InvalidSettingError as error:
        return str(error)
    except ServerError as error:
        return str(error)
    return last


def right(got, most):
    """Whether an outcome is an answer of at most so many tokens, or a plain line about a value."""
    if isinstance(got, Finished):
        return 1 <= got.usage.output_tokens <= most
    got.encode()  # no part of what was not Unicode
    sent = got.split(":")[0].isupper() and ": " in got
    return 10 < len(got) < 400 and "\n" not in got and (not sent or got.startswith(REFUSED))


@settings(max_examples=300)
@given(PROMPTS, st.fixed_dictionaries({}, optional=SAMPLING), st.fixed_dictionaries({}, optional=OTHERS))
def test_absurd_values_give_an_answer_or_one_line(client, prompt, sampling, others):
    assert right(outcome(client, prompt, {"max_tokens": 2} | sampling | others), 511)
    assert client.load().accepting


@settings(max_examples=300)
@given(st.sampled_from([*SAMPLING, "ttft_ms", "tpot_ms"]), st.data())
def test_one_absurd_value_alone(client, name, data):
    """Beside valid ones, so that nothing else is refused before it."""
    got = outcome(client, [5], {"max_tokens": 2, name: data.draw({**SAMPLING, **OTHERS}[name])})
    assert right(got, 2) and (isinstance(got, Finished) or name in got or "stop " in got)


@pytest.mark.parametrize("bad", [-1, 2**32, 10**30])
def test_a_bad_id_in_a_long_prompt_is_refused_in_one_line(server, client, bad, capfd):
    ids = [5] * (PART_TOKENS + 10) + [bad]
    with pytest.raises(InvalidSettingError, match="token id .*; a message holds 0 to 4294967295"):
        list(client.generate(ids))
    with pytest.raises(InvalidSettingError, match="seed is -"):
        list(client.generate([5] * PART_TOKENS, seed=-(2**70)))

    async def read(**stated):
        async with AsyncClient(server.address) as other:
            async for _ in other.generate(ids, **stated):
                pass

    with pytest.raises((InvalidSettingError, ServerError), match="token id |OUT_OF_RANGE"):
        asyncio.run(read())
    with pytest.raises(InvalidSettingError, match="seed is -"):
        asyncio.run(read(seed=-(2**70)))
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("timeout", [1e9, 1e12, 1e300, math.inf, None])
def test_a_huge_timeout_means_none(client, timeout):
    assert seconds_left(timeout) is None and seconds_left(NO_TIMEOUT) == NO_TIMEOUT
    *_, last = client.generate([5], max_tokens=2, timeout=timeout)
    assert last.usage.output_tokens == 2 and client.model(timeout=timeout).name == "simulated"


@pytest.mark.parametrize("timeout", [math.nan, -1.0, -math.inf])
def test_no_number_and_no_past_are_timeouts(server, client, timeout):
    with pytest.raises(InvalidSettingError, match=r"timeout is .*; it must be at least 0"):
        client.generate([5], timeout=timeout)
    with pytest.raises(InvalidSettingError, match="timeout is"):
        client.load(timeout=timeout)


@pytest.mark.parametrize("call", ["tokenize", "abort", "generate"])
def test_text_that_is_not_unicode_is_refused(client, call):
    with pytest.raises(InvalidSettingError, match=r"is not valid Unicode \(lone surrogates\); give UTF-8 text"):
        getattr(client, call)("a\udcff")


WRONG = [
    ("stop", "END", "stop is of type str; give a list of texts"),
    ("stop", 5, "stop is of type int; give a list of texts"),
    ("stop", [5], "stop is of type list; give a list of texts"),
    ("stop_token_ids", ["a"], "stop_token_ids is of type list; give a list of whole numbers"),
    ("allowed_token_ids", "ab", "allowed_token_ids is of type str; give a list of whole numbers"),
    ("allowed_token_ids", 5, "allowed_token_ids is of type int; give a list of whole numbers"),
    ("logit_bias", [1], "logit_bias is of type list; give a dict of numbers by token id"),
    ("logit_bias", {1: "a"}, "logit_bias is of type dict; give a dict of numbers by token id"),
    ("temperature", "hot", "temperature is of type str; give a number"),
    ("seed", 1.5, "seed is of type float; give a whole number"),
    ("top_k", "a", "top_k is of type str; give a whole number"),
    ("n", 1.5, "n is of type float; give a whole number"),
    ("priority", "low", "priority is of type str; give a whole number"),
    ("ignore_eos", "yes", "ignore_eos is of type str; give True or False"),
    ("progress", "yes", "progress is of type str; give True or False"),
    ("request_id", 5, "request_id is of type int; give a text"),
    ("ttft_ms", "a", "ttft_ms is of type str; give a number"),
    ("on_deadline", "later", "on_deadline is 'later'; allowed are continue and drop"),
    ("on_deadline", ["drop"], "on_deadline is ['drop']; allowed are continue and drop"),
    ("structured", "a", "structured is of type str; give a Structured"),
    ("structured", Structured(regex=5), "regex is of type int; give a text"),
    ("structured", Structured(json_schema=[]), "json_schema is of type list; give a text"),
]


@pytest.mark.parametrize(("name", "value", "said"), WRONG)
def test_a_value_of_another_type_is_named_with_what_is_allowed(client, name, value, said):
    """A text of stops would end the output at each of its letters."""
    with pytest.raises(InvalidSettingError, match=f"^{re.escape(said)}$"):
        next(client.generate([5], max_tokens=1, **{name: value}))


def test_a_schema_that_nests_too_deeply_is_refused(client):
    schema: dict = {}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(InvalidSettingError, match="the JSON schema is no JSON"):
        next(client.generate([5], structured=Structured(json_schema=schema)))
    while schema:
        schema = schema["items"]  # taken apart from without: within, it would be too deep again
