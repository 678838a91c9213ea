"""What an output shall follow, as a client states it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medha_jax.client.message_fields import InvalidSettingError, filled
from medha_jax.protos import inference_pb2 as pb


@dataclass(frozen=True)
class Structured:
    """One of four: a JSON schema (as text or parsed), any JSON object, a regular expression, or a Lark grammar.

    The output is one JSON value without text around it, or a text that the expression or grammar describes.
    """

    json_schema: str | Mapping[str, Any] | None = None
    json_object: bool = False
    regex: str | None = None
    grammar: str | None = None

    def message(self) -> pb.StructuredOutput:
        """It as a message.

        Raises:
            InvalidSettingError: none or several are given, or one is no text that can be sent.
        """
        schema = self.json_schema
        if isinstance(schema, Mapping):
            try:
                schema = json.dumps(schema)
            except (TypeError, ValueError, RecursionError) as error:
                raise InvalidSettingError(f"the JSON schema is no JSON: {error}") from None
        texts = {"json_schema": schema, "regex": self.regex, "grammar": self.grammar}
        given = {name: text for name, text in texts.items() if text is not None}
        if len(given) + self.json_object != 1:
            raise InvalidSettingError("give exactly one of json_schema, json_object, regex and grammar")
        return filled(pb.StructuredOutput, given | {"json_object": self.json_object or None})
