"""Which functions a chat may call, and a call that must come: `tool_choice`."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medha_jax.chat import ToolFormat
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.http.errors import FieldRefusal
from medha_jax.server.http.json_fields import Fields, json_text
from medha_jax.server.http.structured_fields import schema_of

_WORDS = ("auto", "none", "required")


@dataclass(frozen=True)
class ToolChoice:
    """What may be called.

    Args:
        functions: that the request describes, by name, with the schema of their arguments.
        calls: whether calls are looked for.
        must: names of the functions of which one must be called; empty if none must.
    """

    functions: dict[str, Any]
    calls: bool = False
    must: tuple[str, ...] = ()

    def opening(self, tools: ToolFormat | None) -> str:
        """What the output is made to begin with, so that a call comes; empty if none must.

        Raises:
            FieldRefusal: the model has no format for calls.
        """
        if not self.must:
            return ""
        if tools is None:
            raise FieldRefusal("tool_choice", "the chat template has no format for calls, so none can be required")
        return tools.opening(self.must[0] if len(self.must) == 1 else None)

    def rest(self, tools: ToolFormat) -> pb.StructuredOutput | None:
        """What an output follows behind `opening`: a name, if there are several, and arguments as its schema says.

        None where the format has a special token in between, which no grammar of texts has.
        """
        if len(self.must) == 1:
            return schema_of("tools", self.functions[self.must[0]])
        if any(marker in tools.between for marker in tools.markers):
            return None
        rules = [f"f{k}" for k in range(len(self.must))]
        lines = ["start: " + " | ".join(rules)]
        for rule, name in zip(rules, self.must, strict=True):
            written = json.dumps(tools.opening(name)[len(tools.opening()) :])
            lines.append(f"{rule}: {written} {rule}_arguments")
            lines.append(f"{rule}_arguments: %json {json_text('tools', self.functions[name])}")
        return pb.StructuredOutput(grammar="\n".join(lines))


def read_tool_choice(fields: Fields, tools: Sequence[str]) -> ToolChoice:
    """Read `tool_choice` for tools, each the JSON text of an object.

    Raises:
        FieldRefusal: it is none of the words, and no function of the tools.
    """
    stated, functions = fields.take("tool_choice"), dict(map(_function, tools))
    if not functions:
        if stated not in (None, "auto", "none"):
            raise FieldRefusal("tool_choice", "tool_choice is for requests with tools")
        return ToolChoice({})
    if stated is None or stated in _WORDS:
        return ToolChoice(functions, stated != "none", tuple(functions) if stated == "required" else ())
    name = stated.get("function") if isinstance(stated, dict) else None
    name = name.get("name") if isinstance(name, dict) else None
    if not isinstance(name, str) or name not in functions:
        raise FieldRefusal(
            "tool_choice",
            f"tool_choice is {reprlib.repr(stated)}; allowed are {', '.join(_WORDS)}, or a function of tools by name",
        )
    return ToolChoice(functions, True, (name,))


def _function(tool: str) -> tuple[str, Any]:
    """Name of a tool's function, "" without one, and the schema of its arguments."""
    function = json.loads(tool).get("function")
    given = function if isinstance(function, dict) else {}
    name, schema = given.get("name"), given.get("parameters")
    return name if isinstance(name, str) else "", {"type": "object", **(schema if isinstance(schema, dict) else {})}
