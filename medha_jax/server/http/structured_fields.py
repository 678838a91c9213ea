"""What an output is to follow, in the words of OpenAI's API and of vLLM's, as `StructuredOutput` of `medha.v1`."""

from __future__ import annotations

import json
from typing import Any

from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.http.errors import FieldRefusal
from medha_jax.server.http.json_fields import Fields, checked_text, json_text

_KINDS = ("text", "json_object", "json_schema")


def read_structured(fields: Fields) -> pb.StructuredOutput | None:
    """Read `response_format` and `structured_outputs`; None if the output may be any text.

    Raises:
        Refusal: a field is unknown or wrong, or both say something.
    """
    found = [one for one in (_response_format(fields), _structured_outputs(fields)) if one is not None]
    if len(found) > 1:
        raise FieldRefusal("structured_outputs", "response_format and structured_outputs both state a form; give one")
    return found[0] if found else None


def schema_of(name: str, schema: Any) -> pb.StructuredOutput:
    """An output that a JSON schema in the field `name` holds for."""
    return pb.StructuredOutput(json_schema=json_text(name, schema))


def _response_format(fields: Fields) -> pb.StructuredOutput | None:
    inner = fields.inner("response_format")
    if inner is None:
        return None
    kind, found = inner.text("type"), None
    if kind not in _KINDS:
        inner.wrong("type", kind, ", ".join(_KINDS))
    if kind == "json_object":
        found = pb.StructuredOutput(json_object=True)
    elif kind == "json_schema":
        stated = inner.inner("json_schema")
        if stated is None:
            inner.wrong("json_schema", None, "an object with name and schema")
        found = schema_of("response_format.json_schema.schema", _schema(stated, "schema"))
        stated.text("name")  # names for the client's own eyes
        stated.text("description")
        stated.switch("strict")  # every schema is followed strictly
        stated.end()
    inner.end()
    return found


def _structured_outputs(fields: Fields) -> pb.StructuredOutput | None:
    inner = fields.inner("structured_outputs")
    if inner is None:
        return None
    found = list[pb.StructuredOutput]()
    if inner.has("json"):
        found.append(schema_of("structured_outputs.json", _schema(inner, "json")))
    if inner.switch("json_object"):
        found.append(pb.StructuredOutput(json_object=True))
    if (regex := inner.text("regex")) is not None:
        found.append(pb.StructuredOutput(regex=checked_text("structured_outputs.regex", regex)))
    if (grammar := inner.text("grammar")) is not None:
        found.append(pb.StructuredOutput(grammar=checked_text("structured_outputs.grammar", grammar)))
    if (choices := inner.texts("choice")) is not None:
        found.append(pb.StructuredOutput(grammar=_one_of(inner, choices)))
    inner.end()
    if len(found) != 1:
        raise FieldRefusal(
            "structured_outputs",
            f"structured_outputs states {len(found)} forms; give one of json, json_object, regex, grammar and choice",
        )
    return found[0]


def _schema(fields: Fields, name: str) -> Any:
    """A schema: an object, or the JSON text of one."""
    schema = fields.take(name)
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            fields.wrong(name, schema, "a JSON schema")
    if not isinstance(schema, (dict, bool)):
        fields.wrong(name, schema, "a JSON schema")
    return schema


def _one_of(fields: Fields, choices: list[str]) -> str:
    """A grammar of some texts."""
    if not choices or not all(choices):
        fields.wrong("choice", choices, "one text or more, none of them empty")
    return "start: " + " | ".join(json.dumps(checked_text("structured_outputs.choice", one)) for one in choices)
