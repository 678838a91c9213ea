"""Any JSON is a chat's request or is refused with a sentence."""

import json
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medha_jax.chat import ChatTemplate
from medha_jax.config import BUNDLED_MODEL
from medha_jax.server.http.chat_request import read_chat
from medha_jax.server.http.errors import body_of, encoded, status_of
from medha_jax.server.http.json_fields import read_json
from medha_jax.server.request_parser import RequestParser, ServedModel
from medha_jax.server.settings import Limits
from medha_jax.text import Tokenizer
from tests.server.http.any_json import NAMES, TEXTS, VALUES, outcome

SOURCE = """{%- for tool in tools or [] %}<tool_call>{{ tool.function.name }}</tool_call>{% endfor %}
{%- for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}[assistant]"""
MODEL = ServedModel("small", Tokenizer.from_directory(BUNDLED_MODEL), 2048, 512)
PARSER = RequestParser(
    ServedModel("small", MODEL.tokenizer, 2048, 512, chat_template=ChatTemplate({"default": SOURCE})), Limits()
)
WORDS = st.sampled_from(
    [
        *("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "id", "type", "function"),
        *("arguments", "parameters", "text", "user", "assistant", "tool", "system", "json_schema", "schema", "json"),
        *("json_object", "regex", "grammar", "choice", "auto", "required", "none"),
    ]
)
ANY = st.recursive(
    VALUES | WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=8
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"]) | ANY, "content": TEXTS | ANY},
    optional={"tool_calls": ANY, "name": ANY, "tool_call_id": ANY, "reasoning_content": ANY},
)
TOOL = st.fixed_dictionaries({"type": st.just("function"), "function": ANY})
FIELDS = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE | ANY, max_size=3) | ANY},
    optional={
        "tools": st.lists(TOOL | ANY, max_size=2) | ANY,
        "tool_choice": WORDS | ANY,
        "response_format": ANY,
        "structured_outputs": ANY,
        "chat_template_kwargs": ANY,
        "logprobs": st.booleans() | ANY,
        "top_logprobs": st.integers(-1, 2**33) | ANY,
        "parallel_tool_calls": ANY,
        "reasoning_effort": ANY,
        "continue_final_message": ANY,
    },
)
HELLO = [{"role": "user", "content": "a"}]
LOOK = {"type": "function", "function": {"name": "look"}}


@given(FIELDS, st.dictionaries(NAMES, VALUES, max_size=2))
@example({"messages": HELLO, "tools": 7}, {})
@example({"messages": HELLO, "tools": False}, {})
@example({"messages": HELLO, "chat_template_kwargs": 0}, {})
@example({"messages": HELLO, "tools": [{"function": {"name": []}}], "tool_choice": "required"}, {})
@example({"messages": HELLO, "tools": [LOOK], "tool_choice": {"function": {"name": ["look"]}}}, {})
@example({"messages": HELLO, "tools": [LOOK], "tool_choice": ["auto"]}, {})
@example({"messages": [{"role": "assistant", "tool_calls": 5}]}, {})
@example({"messages": [{"role": "assistant", "tool_calls": [{"function": 5}]}]}, {})
def test_any_json_gives_a_request_or_a_refusal(given, others):
    asked, refusal = outcome(read_chat, others | given, {}, PARSER)
    if refusal is not None:
        assert 400 <= status_of(refusal) < 500
        assert json.loads(encoded(body_of(refusal)))["error"]["message"] == refusal.message != ""
        return
    (request,) = asked.requests
    assert request.WhichOneof("prompt") == "text" and request.text == asked.prompt + asked.opening
    assert not request.add_special_tokens and request.HasField("add_special_tokens")


@pytest.mark.parametrize("name", ["tools", "chat_template_kwargs"])
@pytest.mark.parametrize("value", [False, 0, "", 5, "a", True])
def test_what_is_no_list_or_object_is_not_taken_for_none(name, value):
    _, refusal = outcome(read_chat, {"messages": HELLO, name: value}, {}, PARSER)
    assert refusal is not None and name in refusal.message


def test_a_call_that_must_come_follows_its_schema_behind_its_opening():
    asked = read_chat({"messages": HELLO, "tools": [LOOK], "tool_choice": "required"}, {}, PARSER)
    assert asked.opening.endswith('"look", "arguments": ')
    assert json.loads(asked.requests[0].settings.structured.json_schema) == {"type": "object"}
    both = [LOOK, {"type": "function", "function": {"name": "go"}}]
    asked = read_chat({"messages": HELLO, "tools": both, "tool_choice": "required"}, {}, PARSER)
    assert asked.opening.endswith('{"name": "') and "%json" in asked.requests[0].settings.structured.grammar


DEEP = {
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"a": "DEEP"}}},
    "structured_outputs": {"json": {"a": "DEEP"}},
    "chat_template_kwargs": {"a": "DEEP"},
    "tools": [{"type": "function", "function": {"name": "look", "parameters": {"a": "DEEP"}}}],
    "messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {"a": "DEEP"}}}]}],
}


@pytest.mark.parametrize("name", DEEP)
def test_json_of_any_depth_gives_a_request_or_a_refusal(name):
    """Whatever Python's stack still holds: what could be read may be too deep to be written again."""
    body = json.dumps({"messages": HELLO, "tool_choice": "auto" if name == "tools" else None, name: DEEP[name]})
    seen = set()
    for depth in range(700, 1010):
        for opens, closes in ("[]", ('{"a":', "}")):
            text = body.replace('"DEEP"', opens * depth + ("1" if closes == "}" else "") + closes * depth)
            asked, refusal = outcome(lambda data: read_chat(read_json(data), {}, PARSER), text.encode())
            assert asked is not None or 400 <= status_of(refusal) < 500
            seen.add(refusal.message if refusal is not None else "")
    assert sys.version_info >= (3, 12) or any("nests too deeply" in message for message in seen)
