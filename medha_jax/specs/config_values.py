"""Values of a parsed `config.json`, read strictly: each has the type that is asked for, or one line says what it is."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LARGEST = 2**31 - 1  # sizes and positions are int32 on the device
LEAST_NUMBER, MOST_NUMBER = 1e-15, 1e15  # no real model is near; beyond, a rule's logarithms and products fail


@dataclass(frozen=True)
class ConfigValues:
    """One JSON object of a `config.json`; null is the same as absent.

    Args:
        content: the object.
        where: its name with a dot for messages, such as `rope_scaling.`; empty for the whole file.
    """

    content: Mapping[str, Any]
    where: str = ""

    def has(self, name: str) -> bool:
        """Whether a value is stated."""
        return self.content.get(name) is not None

    def whole(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` to 2³¹ - 1; `4096.0` is one, `"4096"` and `true` are none.

        Raises:
            KeyError: it is not stated, and there is no default.
            ValueError: it is something else.
        """
        value = self._stated(name, default)
        number = value if not isinstance(value, float) or not value.is_integer() else int(value)
        if not _is_whole(number):
            raise self._wrong(name, value, "a whole number")
        if not least <= number <= LARGEST:
            raise ValueError(f"{self.where}{name} is {shown(value)}; it must be at least {least} and below 2^31")
        return int(number)

    def number(self, name: str, default: float | None = None) -> float:
        """A number above 0, within what rules can compute with; errors as in `whole`."""
        value = self._stated(name, default)
        if not (_is_whole(value) or isinstance(value, float)):
            raise self._wrong(name, value, "a number")
        if not LEAST_NUMBER <= value <= MOST_NUMBER:
            allowed = f"from {LEAST_NUMBER:g} to {MOST_NUMBER:g}"
            raise ValueError(f"{self.where}{name} is {shown(value)}; it must be {allowed}")
        return float(value)

    def switch(self, name: str, default: bool = False) -> bool:
        """True or false; a ValueError for anything else, such as `"false"`."""
        value = self._stated(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str) -> str:
        """A text; a ValueError for anything else."""
        value = self._stated(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a text")
        return value

    def texts(self, name: str) -> list[str] | None:
        """A list of texts, None if it is not stated; a ValueError for anything else."""
        value = self.content.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(part, str) for part in value)):
            raise self._wrong(name, value, "a list of texts")
        return value

    def block(self, name: str) -> ConfigValues:
        """An object inside this one, empty if it is not stated; a ValueError for anything else."""
        value = self.content.get(name)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return ConfigValues(value or {}, f"{self.where}{name}.")

    def _stated(self, name: str, default: Any) -> Any:
        value = self.content.get(name)
        if value is None:
            if default is None:
                raise KeyError(f"{self.where}{name}")
            return default
        return value

    def _wrong(self, name: str, value: object, wanted: str) -> ValueError:
        return ValueError(f"{self.where}{name} is {shown(value)}; it must be {wanted}")


def shown(value: object) -> str:
    """A value for a message, shortened."""
    return reprlib.repr(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
