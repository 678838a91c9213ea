"""Reads the fields of a JSON object, each once; what nobody read is unknown, and refused."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from medha_jax.server.http.errors import FieldRefusal
from medha_jax.server.refusal import invalid

MOST_NAMED = 8  # unknown fields that an error names
MOST_SHOWN = 120  # characters of what the JSON reader says


def read_json(data: bytes) -> Any:
    """What JSON says; numbers that JSON has no word for are refused, too.

    Raises:
        Refusal: it is no JSON.
    """
    try:
        return json.loads(data, parse_constant=_no_number)
    except RecursionError:
        raise invalid("the body nests too deeply") from None
    except ValueError as error:  # UnicodeDecodeError among them, and numbers of thousands of digits
        raise invalid(f"the body is not JSON: {str(error)[:MOST_SHOWN]}") from None


def json_text(name: str, value: Any) -> str:
    """The JSON text of a value of the field `name`, which `read_json` made.

    Raises:
        FieldRefusal: it nests too deeply: to write takes a few calls more than to read, so it has a limit of its own.
    """
    try:
        return json.dumps(value)
    except RecursionError:
        raise FieldRefusal(name, f"{name} nests too deeply") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


class Fields:
    """The fields of an object, at the path `where` in the request. A field that is null counts as not there.

    Attributes:
        where: the path.
        ignored: names of fields that were there, and change nothing.
    """

    def __init__(self, given: Any, where: str = "") -> None:
        self.where = where
        if not isinstance(given, dict):
            self.wrong("", given, "an object")
        self._given: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self.ignored: list[str] = []

    def wrong(self, name: str, value: object, allowed: str) -> NoReturn:
        """Refuse the value of a field."""
        path = self._path(name)
        raise FieldRefusal(path, f"{path or 'the body'} is {_shown(value, bool(path))}; allowed is {allowed}")

    def take(self, name: str) -> Any:
        """The value of a field as it is; None without one."""
        return self._given.pop(name, None)

    def has(self, name: str) -> bool:
        """Whether a field is there and was not taken."""
        return name in self._given

    def number(self, name: str) -> float | None:
        """A finite number."""
        value: float | None = self.take(name)
        if value is None or _is_finite(value):
            return value
        self.wrong(name, value, "a number")

    def integer(self, name: str) -> int | None:
        """A whole number; 3.0 is one."""
        value = self.take(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        self.wrong(name, value, "a whole number")

    def switch(self, name: str) -> bool | None:
        """True or false."""
        value = self.take(name)
        if value is None or isinstance(value, bool):
            return value
        self.wrong(name, value, "true or false")

    def text(self, name: str) -> str | None:
        """A text."""
        value = self.take(name)
        if value is None or isinstance(value, str):
            return value
        self.wrong(name, value, "a text")

    def integers(self, name: str) -> list[int] | None:
        """A list of whole numbers."""
        value: list[int] | None = self.take(name)
        if value is None or is_integers(value):
            return value
        self.wrong(name, value, "a list of whole numbers")

    def texts(self, name: str) -> list[str] | None:
        """A text, or a list of texts."""
        value = self.take(name)
        if value is None or (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            return value
        if isinstance(value, str):
            return [value]
        self.wrong(name, value, "a text or a list of texts")

    def inner(self, name: str) -> Fields | None:
        """An object within this one."""
        value = self.take(name)
        return None if value is None else Fields(value, self._path(name))

    def only(self, name: str, allowed: Sequence[object], why: str) -> None:
        """Refuse a field that is there with another value; `why` says what is not done here."""
        value = self.take(name)
        if value is not None and value not in allowed:
            raise FieldRefusal(self._path(name), f"{self._path(name)} is {_shown(value)}; {why}")

    def ignore(self, *names: str) -> None:
        """Take fields that change nothing here."""
        self.ignored += [self._path(name) for name in names if self.take(name) is not None]

    def end(self) -> None:
        """Refuse the fields that are left."""
        if left := sorted(map(self._path, self._given)):
            more = f" and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else ""
            names = ", ".join(reprlib.repr(name)[1:-1] for name in left[:MOST_NAMED])
            raise FieldRefusal(left[0], f"unknown fields: {names}{more}; docs/http.md lists what is known")

    def _path(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where and name else self.where or name


def is_integers(value: object) -> bool:
    """Whether a value is a list of whole numbers."""
    return isinstance(value, list) and all(type(one) is int for one in value)


def numbers_by_id(fields: Fields, name: str) -> Mapping[int, float]:
    """A field that maps token ids, written as texts, to numbers; empty without one."""
    value = fields.take(name)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(_is_id(key) and _is_finite(bias) for key, bias in value.items()):
        fields.wrong(name, value, "an object of numbers by token id")
    return {int(key): float(bias) for key, bias in value.items()}


def _is_finite(value: object) -> bool:
    """Whether a value is a number that a float can hold."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _shown(value: object, texts: bool = True) -> str:
    """A value in an error, without what may be a prompt: what is within lists and objects, and perhaps texts."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, str):
        return reprlib.repr(value) if texts else "a text"
    return "missing" if value is None else json.dumps(value) if isinstance(value, bool) else reprlib.repr(value)


def _is_id(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) < 11


def checked_text(name: str, text: str) -> str:
    """A text that is valid Unicode.

    Raises:
        FieldRefusal: it holds lone surrogates, which JSON can write.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FieldRefusal(name, f"{name} is not valid Unicode (lone surrogates)") from None
    return text
