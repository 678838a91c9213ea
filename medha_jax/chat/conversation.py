"""Checks messages and tools in OpenAI's form, and makes the plain data that a template sees."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from medha_jax.chat.errors import ChatError

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_MESSAGES, MOST_TOOLS, MOST_CALLS = 8192, 1024, 1024
LONGEST_NAME = 256  # characters of a name or an id
DEEPEST_JSON = 64  # objects and lists within each other
MOST_VALUES = 2**19  # in messages, tools and variables together
_FIELDS = ("role", "content", "reasoning_content", "name", "tool_calls", "tool_call_id")
# what a template is given beside the variables of a request
OWN_VARIABLES = ("messages", "tools", "add_generation_prompt")


@dataclass(frozen=True)
class Conversation:
    """What a template sees, as plain data of its own.

    Args:
        messages: as transformers gives them to a template: no field is None.
        tools: None without any.
        variables: of the request, by name.
        weight: characters and values in all of these; the work of a rendering is bounded by it.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    variables: dict[str, Any]
    weight: int


class _Copier:
    """Copies JSON values. Owns their count."""

    def __init__(self) -> None:
        self.values = self.characters = 0

    def text(self, value: str, where: str) -> str:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ChatError(f"{where} is not valid Unicode (lone surrogates); give UTF-8 text") from None
        self.characters += len(value)
        return str(value)

    def plain(self, value: Any, where: str, depth: int = 0) -> Any:
        self.values += 1
        if self.values > MOST_VALUES:
            raise ChatError(f"messages, tools and variables have more than {MOST_VALUES} values together")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self.text(value, where)
        if isinstance(value, int) and value.bit_length() <= 1024:
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        if depth == DEEPEST_JSON:
            raise ChatError(f"{where} nests objects and lists more than {DEEPEST_JSON} times")
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise ChatError(f"{where} has a key that is no text")
            return {self.text(key, where): self.plain(item, where, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.plain(item, where, depth + 1) for item in value]
        raise ChatError(
            f"{where} holds a value of the kind {type(value).__name__}; allowed is what JSON has, with finite numbers "
            "of at most 300 digits"
        )


def conversation(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any] | None,
) -> Conversation:
    """Check and copy what a request gives.

    Raises:
        ChatError: names the message, tool or variable, and what is allowed.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise ChatError("messages must be a list")
    if not 1 <= len(messages) <= MOST_MESSAGES:
        raise ChatError(f"there are {len(messages)} messages; allowed are 1 to {MOST_MESSAGES}")
    copier = _Copier()
    copied = [_message(message, f"message {index}", copier) for index, message in enumerate(messages)]
    chosen = _tools(tools, copier)
    stated = _variables(variables, copier)
    return Conversation(copied, chosen, stated, copier.characters + 64 * (copier.values + 2 * len(copied)))


def _message(message: Any, where: str, copier: _Copier) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ChatError(f"{where} must be an object with role and content")
    given = {key: value for key, value in message.items() if value is not None}
    role = given.get("role")
    if role not in ROLES:
        raise ChatError(f"{where} has the role {reprlib.repr(role)}; allowed are {', '.join(ROLES)}")
    copied: dict[str, Any] = {}
    for field, value in given.items():
        if field not in _FIELDS:
            raise ChatError(f"{where} has the field {reprlib.repr(field)}; allowed are {', '.join(_FIELDS)}")
        copied[field] = _COPIES[field](value, f"{field} of {where}", copier)
    if not copied.get("tool_calls", True):  # as if there were none
        del copied["tool_calls"]
    for field, needed in (("tool_calls", "assistant"), ("reasoning_content", "assistant"), ("tool_call_id", "tool")):
        if field in copied and role != needed:
            raise ChatError(f"{where} of the role {role} has {field}, which is for the role {needed}")
    if "content" not in copied and role != "assistant":
        raise ChatError(f"{where} of the role {role} has no content; give a text")
    if "reasoning_content" in copied:
        copied = {"thinking": copied["reasoning_content"], **copied}  # as transformers gives it to templates
    return copied


def _content(value: Any, where: str, copier: _Copier) -> str | list[dict[str, str]]:
    if isinstance(value, str):
        return copier.text(value, where)
    if not isinstance(value, (list, tuple)):
        raise ChatError(f"{where} must be a text, or a list of parts of the type text")
    return [_part(part, where, copier) for part in value]


def _part(part: Any, where: str, copier: _Copier) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(part.get("text"), str) or len(part) != 2:
        said = f"of the type {reprlib.repr(kind)}" if kind not in (None, "text") else "that is no text"
        raise ChatError(
            f'{where} has a part {said}; allowed are {{"type": "text", "text": ...}}: this model reads text'
        )
    copier.plain(None, where)
    return {"type": "text", "text": copier.text(part["text"], where)}


def _name(value: Any, where: str, copier: _Copier) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_NAME:
        raise ChatError(f"{where} must be a text of 1 to {LONGEST_NAME} characters")
    return copier.text(value, where)


def _text(value: Any, where: str, copier: _Copier) -> str:
    if not isinstance(value, str):
        raise ChatError(f"{where} must be a text")
    return copier.text(value, where)


def _calls(value: Any, where: str, copier: _Copier) -> list[dict[str, Any]]:
    if not isinstance(value, (list, tuple)) or len(value) > MOST_CALLS:
        raise ChatError(f"{where} must be a list of at most {MOST_CALLS} calls")
    return [_call(call, f"call {index} in {where}", copier) for index, call in enumerate(value)]


def _call(call: Any, where: str, copier: _Copier) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or call.get("type", "function") != "function":
        raise ChatError(f"{where} must have the type function, and a function with name and arguments")
    copied: dict[str, Any] = {}
    for key, value in call.items():
        if key == "function":
            copied[key] = _function(function, where, copier)
        elif key == "id" and value is not None:
            copied[key] = _name(value, f"the id of {where}", copier)
        elif key == "type":
            copied[key] = "function"
        elif key not in ("id", "index"):  # a client that joins deltas may leave their index
            raise ChatError(f"{where} has the field {reprlib.repr(key)}; allowed are id, type and function")
    return copied


def _function(function: Mapping[str, Any], where: str, copier: _Copier) -> dict[str, Any]:
    if {*function} - {"name", "arguments"} or "name" not in function:
        raise ChatError(f"the function of {where} must have a name and arguments, and nothing else")
    given = {"arguments": "{}"} if function.get("arguments") is None else {}
    copied: dict[str, Any] = {}
    for key, value in {**function, **given}.items():
        if key == "name":
            copied[key] = _name(value, f"the name of {where}", copier)
        else:
            copied[key] = json_object(value, f"the arguments of {where}", copier.plain)
    return copied


def json_object(value: Any, where: str, plain: Callable[[Any, str], Any] | None = None) -> dict[str, Any]:
    """An object, or the JSON text of one, as plain data. An empty text is an empty object.

    Raises:
        ChatError: it is neither, or something in it is not allowed.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}", parse_constant=_not_json)
        except RecursionError:
            raise ChatError(f"{where}: objects and lists are nested more than {DEEPEST_JSON} times") from None
        except ValueError as error:  # its text may hold a part of what was given
            at = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
            raise ChatError(f"{where}: no valid JSON{at}; give the JSON text of an object") from None
    if not isinstance(value, Mapping):
        raise ChatError(f"{where} must be a JSON object, or its text")
    copied: dict[str, Any] = (plain or _Copier().plain)(value, where)
    return copied


def _not_json(constant: str) -> NoReturn:
    raise ValueError(constant)


def _tools(tools: Any, copier: _Copier) -> list[Any] | None:
    if not tools:
        return None
    if not isinstance(tools, (list, tuple)) or len(tools) > MOST_TOOLS:
        raise ChatError(f"tools must be a list of at most {MOST_TOOLS} functions")
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type") != "function":
            raise ChatError(f'tool {index} must be {{"type": "function", "function": {{"name": ..., ...}}}}')
        name = function.get("name")
        if not isinstance(name, str) or not 1 <= len(name) <= LONGEST_NAME:
            raise ChatError(f"the name of tool {index} must be a text of 1 to {LONGEST_NAME} characters")
    return [copier.plain(tool, f"tool {index}") for index, tool in enumerate(tools)]


def _variables(variables: Any, copier: _Copier) -> dict[str, Any]:
    if not isinstance(variables or {}, Mapping):
        raise ChatError("the template's variables must be an object")
    copied: dict[str, Any] = copier.plain(variables or {}, "the template's variables")
    for name in copied:
        if not (name.isidentifier() and len(name) <= LONGEST_NAME) or name.startswith("_") or name in OWN_VARIABLES:
            raise ChatError(
                f"a template's variable is named {reprlib.repr(name)}; allowed are identifiers but "
                f"{', '.join(OWN_VARIABLES)}"
            )
    return copied


_COPIES: dict[str, Callable[[Any, str, _Copier], Any]] = {
    "role": _text,
    "content": _content,
    "reasoning_content": _text,
    "name": _name,
    "tool_calls": _calls,
    "tool_call_id": _name,
}
