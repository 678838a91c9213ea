"""A conversation as a prompt, and the message that carries it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from medha_jax.client.message_fields import InvalidSettingError, check_prompt, check_text
from medha_jax.protos import inference_pb2 as pb

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Chat:
    """A conversation in OpenAI's form; the server makes a prompt of it with the model's chat template.

    Args:
        messages: each with `role` and `content`; an assistant's with `tool_calls` and `reasoning_content`, a tool's
            with `tool_call_id`. Arguments of calls are objects or their JSON text.
        tools: the functions that the model may call.
        variables: what the template may read beside the messages, such as `{"enable_thinking": False}`.
        add_generation_prompt: end with what begins the assistant's next message; None for yes, unless it continues.
        continue_final_message: leave the last message open, so that the model goes on with it.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def message(self) -> pb.Chat:
        """The conversation as a message.

        Raises:
            InvalidSettingError: something in it fits no field; the server checks the rest.
        """
        return _filled(
            pb.Chat,
            "the chat",
            messages=[_message(message, f"message {index}") for index, message in enumerate(self.messages)],
            tools=[_json(tool, f"tool {index}") for index, tool in enumerate(self.tools or ())],
            variables=None if self.variables is None else _json(self.variables, "variables"),
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
        )


def chat_or_prompt(
    prompt: str | Sequence[int] | Chat | None,
    messages: Sequence[Mapping[str, Any]] | None,
    tools: Sequence[Mapping[str, Any]] | None,
) -> str | Sequence[int] | Chat:
    """The one prompt of a request.

    Raises:
        InvalidSettingError: there is none, there are two, or it is no text, no token ids and no chat.
    """
    if messages is None and tools is None:
        if not isinstance(prompt, Chat):
            check_prompt(prompt)
        assert prompt is not None, "check_prompt refuses it"
        return prompt
    if messages is None or prompt is not None:
        raise InvalidSettingError("give either a prompt, or messages and perhaps tools")
    return Chat(messages, tools)


def _message(message: Any, where: str) -> pb.ChatMessage:
    if not isinstance(message, Mapping):
        raise InvalidSettingError(f"{where} is of type {type(message).__name__}; give a dict with role and content")
    calls = message.get("tool_calls")
    stated = {name: value for name, value in message.items() if name != "tool_calls"}
    return _filled(pb.ChatMessage, where, **stated, tool_calls=[_call(call, where) for call in calls or ()])


def _call(call: Any, where: str) -> pb.ChatToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or call.get("type", "function") != "function":
        raise InvalidSettingError(f"a call of {where} must have a function with name and arguments")
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str | None) else _json(arguments, f"the arguments of {where}")
    return _filled(pb.ChatToolCall, where, id=call.get("id"), name=function.get("name"), arguments=text)


def _filled(kind: type[M], where: str, **fields: Any) -> M:
    """A message; None is left out.

    Raises:
        InvalidSettingError: a field is not there, or its value is of another type.
    """
    for name, value in fields.items():
        if isinstance(value, str):
            check_text(f"{name} of {where}", value)
        if name not in kind.DESCRIPTOR.fields_by_name:
            allowed = ", ".join(kind.DESCRIPTOR.fields_by_name)
            raise InvalidSettingError(f"{where} has {name!r}; allowed are {allowed}")
    try:
        return kind(**fields)
    except (TypeError, ValueError):
        raise InvalidSettingError(f"a field of {where} is of the wrong type; texts are texts") from None


def _json(value: Any, where: str) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise InvalidSettingError(f"{where} cannot be written as JSON") from None
    check_text(where, text)
    return text
