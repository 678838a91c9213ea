from __future__ import annotations

import json
import math
from typing import Any

import pytest

from medha_jax.client import Chat, InvalidSettingError
from medha_jax.client.chat_message import chat_or_prompt
from medha_jax.client.connection import Settings, generation, tokenize_message
from medha_jax.protos import inference_pb2 as pb

BAD: Any = ["hi"]
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": "é"}}}


def test_a_conversation_becomes_a_message_in_its_order() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": "é"}}}
    messages = [
        {**USER, "name": "ann"},
        {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": "1"},
    ]
    made = Chat(messages, [TOOL], {"enable_thinking": False}, add_generation_prompt=True).message()
    assert made.messages[0] == pb.ChatMessage(role="user", content="hi", name="ann")
    assert made.messages[1] == pb.ChatMessage(
        role="assistant",
        reasoning_content="r",
        tool_calls=[pb.ChatToolCall(id="1", name="f", arguments='{"z": 1, "a": "é"}')],
    )
    assert made.messages[2] == pb.ChatMessage(role="tool", content="5", tool_call_id="1")
    assert [*made.tools] == [json.dumps(TOOL, ensure_ascii=False)]
    assert made.variables == '{"enable_thinking": false}'
    assert made.add_generation_prompt and not made.HasField("continue_final_message")


def test_texts_of_json_go_as_they_are() -> None:
    call = {"function": {"name": "f", "arguments": '{"a" : 1}'}}
    made = Chat([{"role": "assistant", "tool_calls": [call]}]).message()
    assert made.messages[0].tool_calls[0] == pb.ChatToolCall(name="f", arguments='{"a" : 1}')
    assert not made.HasField("variables") and not made.tools


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        (Chat(BAD), "message 0 is of type str; give a dict with role and content"),
        (Chat([{"role": "user", "content": 5}]), "a field of message 0 is of the wrong type"),
        (Chat([{"role": "user", "content": [{"type": "text"}]}]), "a field of message 0 is of the wrong type"),
        (Chat([{"role": "user", "colour": "red"}]), "message 0 has 'colour'; allowed are role, content"),
        (Chat([{"role": "user", "content": "\ud800"}]), "content of message 0 is not valid Unicode"),
        (Chat([{"role": "assistant", "tool_calls": [{"function": "f"}]}]), "a call of message 0 must have a function"),
        (Chat([USER], [{"a": math.nan}]), "tool 0 cannot be written as JSON"),
        (Chat([USER], [{"a": "\ud800"}]), "tool 0 is not valid Unicode"),
        (Chat([USER], variables={"a": {1}}), "variables cannot be written as JSON"),
    ],
)
def test_what_fits_no_message_is_refused_before_it_is_sent(chat: Chat, said: str) -> None:
    with pytest.raises(InvalidSettingError, match=said):
        chat.message()


def test_a_request_has_one_prompt() -> None:
    assert chat_or_prompt("a", None, None) == "a"
    assert chat_or_prompt(None, [USER], [TOOL]) == Chat([USER], [TOOL])
    with pytest.raises(InvalidSettingError, match="the prompt is of type NoneType"):
        chat_or_prompt(None, None, None)
    for given in (("a", [USER], None), ("a", None, [TOOL]), (None, None, [TOOL])):
        with pytest.raises(InvalidSettingError, match="give either a prompt, or messages and perhaps tools"):
            chat_or_prompt(*given)


class Channel:
    """Keeps the message of the one call that is made."""

    def unary_stream(self, *given: Any, **more: Any) -> Any:
        return lambda message, **options: message


def test_a_chat_goes_as_one_message() -> None:
    asked = generation(Channel(), Chat([USER]), Settings(n=2, max_tokens=3), parts=None)
    assert (asked.chat, asked.n, asked.settings.sampling.max_tokens) == (Chat([USER]).message(), 2, 3)
    with pytest.raises(InvalidSettingError, match="add_special_tokens is for a text; the prompt is a chat"):
        generation(Channel(), Chat([USER]), Settings(add_special_tokens=True), parts=None)
    assert tokenize_message(Chat([USER]), None) == pb.TokenizeRequest(chat=Chat([USER]).message())
