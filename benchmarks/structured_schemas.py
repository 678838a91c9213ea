"""Random JSON schemas, of the keywords that clients use most."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

WORDS = ("id", "name", "kind", "état", "count", "items", "a b", "x-1", "owner", "price", 'say "hi"', "on", "up")
PATTERNS = ("^[a-z]{2,5}$", "^[A-F0-9]{4}(-[A-F0-9]{4})?$", "^(on|off|auto)$", "^v[0-9]+[.][0-9]+$")
FORMATS = ("date", "uuid", "ipv4")


class SchemaGenerator:
    """Draws schemas; the same seed draws the same ones. Every schema can be met, by a text that ends soon."""

    def __init__(self, seed: int) -> None:
        self._draw = np.random.default_rng(seed)

    def schema(self) -> dict[str, Any]:
        """The next one: an object or an array mostly, perhaps with definitions that refer to themselves."""
        defined = {}
        if self._chance(0.3):
            defined["leaf"] = self._scalar()
            following = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/chain"}]}
            defined["chain"] = self._closed({"value": {"$ref": "#/$defs/leaf"}, "next": following}, ["value"])
        found = self._any(3, tuple(defined)) if self._chance(0.2) else self._container(3, tuple(defined))
        return {**found, "$defs": defined} if defined else found

    def _any(self, depth: int, defined: tuple[str, ...]) -> dict[str, Any]:
        if depth and self._chance(0.45):
            return self._container(depth, defined)
        if defined and self._chance(0.25):
            return {"$ref": f"#/$defs/{self._one(defined)}"}
        if depth and self._chance(0.15):
            return {"anyOf": [self._any(depth - 1, defined) for _ in range(self._upto(1, 3))]}
        return self._scalar()

    def _container(self, depth: int, defined: tuple[str, ...]) -> dict[str, Any]:
        if self._chance(0.35):
            least = self._upto(0, 2)
            found: dict[str, Any] = {"type": "array", "items": self._any(depth - 1, defined)}
            if self._chance(0.3):
                found["prefixItems"] = [self._any(depth - 1, defined) for _ in range(self._upto(1, 2))]
            return {**found, "minItems": least, "maxItems": least + self._upto(0, 2)}
        names = self._draw.permutation(np.array(WORDS))[: self._upto(0, 5)].tolist()
        required = [name for name in names if self._chance(0.6)]
        found = self._closed({name: self._any(depth - 1, defined) for name in names}, required)
        if self._chance(0.1):
            del found["additionalProperties"]
        return found

    def _scalar(self) -> dict[str, Any]:
        match self._upto(0, 10):
            case 0:
                low = self._upto(-1000, 1000)
                return {"type": "integer", "minimum": low, "maximum": low + self._upto(0, 5000)}
            case 1:
                return {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10**6, "multipleOf": 5}
            case 2:
                return {"type": "number", "minimum": -1.5, "maximum": self._upto(0, 100) / 4}
            case 3 | 4:
                least = self._upto(0, 4)
                return {"type": "string", "minLength": least, "maxLength": least + self._upto(0, 8)}
            case 5:
                return {"type": "string", "pattern": self._one(PATTERNS)}
            case 6:
                return {"type": "string", "format": self._one(FORMATS)}
            case 7:
                return {"enum": [1, "zwei", None, True, ["three", 4.5]][: self._upto(1, 5)]}
            case 8:
                return {"const": self._one(("fixed", "ünï", 7, False))}
            case 9:
                return {"type": ["boolean", "null"]}
            case _:
                return {"type": "boolean"}

    def _closed(self, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
        return {**found, "required": required} if required else found

    def _upto(self, low: int, high: int) -> int:
        return int(self._draw.integers(low, high + 1))

    def _chance(self, share: float) -> bool:
        return bool(self._draw.random() < share)

    def _one(self, of: tuple[Any, ...]) -> Any:
        return of[self._upto(0, len(of) - 1)]


def schemas(count: int, seed: int) -> list[str]:
    """`count` schemas as text, no two of them equal."""
    generator, found = SchemaGenerator(seed), dict[str, None]()
    while len(found) < count:
        found[json.dumps(generator.schema(), ensure_ascii=False)] = None
    return list(found)
