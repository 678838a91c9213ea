"""Makes the text of a prompt of a `Chat` message."""

from __future__ import annotations

from typing import Any

from medha_jax.chat import ChatTemplate, json_object
from medha_jax.protos import inference_pb2 as pb


def rendered(template: ChatTemplate, chat: pb.Chat) -> str:
    """The text that a template makes of a message.

    Raises:
        ChatError: as in `ChatTemplate.render`; or a tool, or the variables, are not the JSON text of an object.
    """
    continues = chat.continue_final_message
    return template.render(
        [_message(message) for message in chat.messages],
        [json_object(tool, f"tool {index}") for index, tool in enumerate(chat.tools)],
        add_generation_prompt=chat.add_generation_prompt if chat.HasField("add_generation_prompt") else not continues,
        continue_final_message=continues,
        variables=json_object(chat.variables, "the template's variables"),
    )


def _message(message: pb.ChatMessage) -> dict[str, Any]:
    """A message as OpenAI's API has it."""
    names = ("content", "reasoning_content", "name", "tool_call_id")
    optional = {name: getattr(message, name) for name in names if message.HasField(name)}
    calls = [_call(call) for call in message.tool_calls]
    return {"role": message.role, **optional, "tool_calls": calls or None}


def _call(call: pb.ChatToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {**({"id": call.id} if call.HasField("id") else {}), "type": "function", "function": function}
