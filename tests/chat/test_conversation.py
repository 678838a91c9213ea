from __future__ import annotations

import math
from typing import Any

import pytest

from medha_jax.chat import ChatError
from medha_jax.chat.conversation import (
    DEEPEST_JSON,
    MOST_CALLS,
    MOST_MESSAGES,
    MOST_TOOLS,
    MOST_VALUES,
    conversation,
    json_object,
)

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def call(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": fields}]}


def nested(times: int) -> Any:
    value: Any = 1
    for _ in range(times):
        value = [value]
    return value


def test_messages_are_copied_without_what_is_null() -> None:
    given = [{"role": "assistant", "content": None, "tool_calls": None, "refusal": None, "name": "a"}, {**USER}]
    made = conversation(given, None, None)
    assert made.messages == [{"role": "assistant", "name": "a"}, USER]
    assert made.messages[1] is not given[1]
    assert (made.tools, made.variables) == (None, {})
    assert conversation([{"role": "assistant", "content": "", "tool_calls": []}], [], {}).messages == [
        {"role": "assistant", "content": ""}
    ]


@pytest.mark.parametrize("arguments", ['{"a": [1.5, null, "é"]}', {"a": [1.5, None, "é"]}])
def test_arguments_become_an_object(arguments: Any) -> None:
    (made,) = conversation([call(name="f", arguments=arguments)], None, None).messages
    assert made["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": [1.5, None, "é"]}}


@pytest.mark.parametrize("arguments", ["", None, "{}"])
def test_no_arguments_are_an_empty_object(arguments: Any) -> None:
    (made,) = conversation([call(name="f", arguments=arguments)], None, None).messages
    assert made["tool_calls"][0]["function"]["arguments"] == {}


def test_keys_keep_their_order_because_templates_write_them_so() -> None:
    (made,) = conversation([call(arguments="{}", name="f")], None, None).messages
    assert [*made["tool_calls"][0]["function"]] == ["arguments", "name"]


def test_a_client_may_leave_the_index_of_a_delta() -> None:
    message = {"role": "assistant", "tool_calls": [{"index": 0, "id": "1", "function": {"name": "f"}}]}
    assert conversation([message], None, None).messages[0]["tool_calls"] == [
        {"id": "1", "function": {"name": "f", "arguments": {}}}
    ]


def test_reasoning_has_both_names_that_templates_use() -> None:
    message = {"role": "assistant", "content": "a", "reasoning_content": "r"}
    assert conversation([message], None, None).messages == [{"thinking": "r", **message}]


def test_parts_of_text_are_kept() -> None:
    parts = [{"type": "text", "text": "a"}, {"text": "b", "type": "text"}]
    assert conversation([{"role": "user", "content": parts}], None, None).messages[0]["content"] == parts


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("hi", "message 1 must be an object"),
        ({"content": "hi"}, "message 1 has the role None; allowed are system, developer, user, assistant, tool"),
        ({"role": "a" * 10**6, "content": ""}, "message 1 has the role 'aaaaaaaaaaaa"),
        ({"role": ["user"], "content": ""}, "message 1 has the role ['user']"),
        ({"role": "user"}, "message 1 of the role user has no content; give a text"),
        ({"role": "tool", "content": None}, "message 1 of the role tool has no content"),
        ({"role": "user", "content": 5}, "content of message 1 must be a text, or a list of parts of the type text"),
        ({"role": "user", "content": {"type": "text", "text": "a"}}, "content of message 1 must be a text, or a list"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "a part of the type 'image_url'; allowed",
        ),
        ({"role": "user", "content": ["a"]}, "a part that is no text; allowed"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "a part that is no text; allowed"),
        ({"role": "user", "content": "\ud800"}, "content of message 1 is not valid Unicode (lone surrogates)"),
        ({"role": "user", "content": "a", "colour": 1}, "message 1 has the field 'colour'; allowed are role, content"),
        ({"role": "user", "content": "a", "name": ""}, "name of message 1 must be a text of 1 to 256 characters"),
        (
            {"role": "user", "content": "a", "name": "n" * 257},
            "name of message 1 must be a text of 1 to 256 characters",
        ),
        (
            {"role": "user", "content": "a", "reasoning_content": "b"},
            "has reasoning_content, which is for the role assis",
        ),
        (
            {"role": "user", "content": "a", "tool_calls": [{"function": {"name": "f"}}]},
            "which is for the role assistant",
        ),
        ({"role": "user", "content": "a", "tool_call_id": "1"}, "has tool_call_id, which is for the role tool"),
        ({"role": "assistant", "tool_calls": {}}, "tool_calls of message 1 must be a list of at most 1024 calls"),
        ({"role": "assistant", "tool_calls": [{}] * (MOST_CALLS + 1)}, "must be a list of at most 1024 calls"),
        ({"role": "assistant", "tool_calls": [1]}, "call 0 in tool_calls of message 1 must have the type function"),
        ({"role": "assistant", "tool_calls": [{"type": "custom", "function": {}}]}, "must have the type function"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f"}, "x": 1}]},
            "has the field 'x'; allowed are id",
        ),
        (call(arguments="{}"), "must have a name and arguments, and nothing else"),
        (call(name="f", arguments="{}", strict=True), "must have a name and arguments, and nothing else"),
        (call(name="", arguments="{}"), "the name of call 0 in tool_calls of message 1 must be a text of 1 to 256"),
        (
            call(name="f", arguments="{"),
            "the arguments of call 0 in tool_calls of message 1: no valid JSON at character 1",
        ),
        (call(name="f", arguments="[1]"), "must be a JSON object, or its text"),
        (call(name="f", arguments='{"a": NaN}'), "no valid JSON; give the JSON text of an object"),
        (call(name="f", arguments='{"a": 1e999}'), "holds a value of the kind float; allowed is what JSON has"),
        (
            call(name="f", arguments='{"a": ' + "9" * 400 + "}"),
            "holds a value of the kind int; allowed is what JSON has",
        ),
        (call(name="f", arguments='{"a": ' + "9" * 5000 + "}"), "no valid JSON; give the JSON text of an object"),
        (call(name="f", arguments='{"a": ' + "[" * 100_000 + "}"), "objects and lists are nested more than 64 times"),
        (call(name="f", arguments={"a": nested(DEEPEST_JSON)}), "nests objects and lists more than 64 times"),
        (call(name="f", arguments='{"\\ud800": 1}'), "is not valid Unicode"),
        (call(name="f", arguments={1: 1}), "has a key that is no text"),
        (call(name="f", arguments={"a": object()}), "holds a value of the kind object; allowed is what JSON has"),
    ],
)
def test_what_is_wrong_in_a_message_is_named(message: Any, said: str) -> None:
    with pytest.raises(ChatError) as refused:
        conversation([USER, message], None, None)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ({"a": 1}, "tools must be a list of at most 1024 functions"),
        ([TOOL] * (MOST_TOOLS + 1), "tools must be a list of at most 1024 functions"),
        ([TOOL, "f"], 'tool 1 must be {"type": "function", "function": {"name": ..., ...}}'),
        ([{"type": "retrieval", "function": {"name": "f"}}], "tool 0 must be"),
        ([{"type": "function", "function": {}}], "the name of tool 0 must be a text of 1 to 256 characters"),
        ([{**TOOL, "x": math.nan}], "tool 0 holds a value of the kind float"),
        ([{**TOOL, "x": nested(DEEPEST_JSON)}], "tool 0 nests objects and lists more than 64 times"),
        ([{**TOOL, "x": [0] * MOST_VALUES}], f"have more than {MOST_VALUES} values together"),
    ],
)
def test_what_is_wrong_in_a_tool_is_named(tools: Any, said: str) -> None:
    with pytest.raises(ChatError) as refused:
        conversation([USER], tools, None)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ([1], "the template's variables must be an object"),
        ({"tools": []}, "a template's variable is named 'tools'; allowed are identifiers but messages"),
        ({" limit": 1}, "a template's variable is named ' limit'; allowed are identifiers"),
        ({"_a": 1}, "a template's variable is named '_a'"),
        ({"a" * 300: 1}, "a template's variable is named 'aaaa"),
        ({"a": {1, 2}}, "the template's variables holds a value of the kind set"),
    ],
)
def test_what_is_wrong_in_a_variable_is_named(variables: Any, said: str) -> None:
    with pytest.raises(ChatError) as refused:
        conversation([USER], None, variables)
    assert said in str(refused.value)


@pytest.mark.parametrize("messages", [[], [USER] * (MOST_MESSAGES + 1), "hi", {"role": "user"}, b"hi"])
def test_the_number_of_messages_is_bounded(messages: Any) -> None:
    with pytest.raises(ChatError, match="messages"):
        conversation(messages, None, None)


def test_a_json_object_is_read_alone_too() -> None:
    assert json_object('{"a": 1}', "it") == {"a": 1}
    with pytest.raises(ChatError, match="it must be a JSON object"):
        json_object("1", "it")
