"""What the fields of a message hold: values that fit none of them are refused with one line, before a call begins."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from medha_jax.protos import inference_pb2 as pb

MOST_ID = 2**32 - 1  # that a message holds; the server knows its vocabulary
NO_TIMEOUT = 10 * 365 * 86400.0  # seconds; gRPC cannot tell centuries, and nobody waits for them
_WHOLE = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_WORDS = {
    FieldDescriptor.CPPTYPE_STRING: ("a text", "a list of texts"),
    FieldDescriptor.CPPTYPE_BOOL: ("True or False", ""),
    FieldDescriptor.CPPTYPE_DOUBLE: ("a number", ""),
}  # any other holds whole numbers
M = TypeVar("M", bound=Message)


class InvalidSettingError(ValueError):
    """A value does not fit the field of its message; the text says what does."""


def filled(kind: type[M], values: Mapping[str, Any]) -> M:
    """A message of values for its fields; None is left out. A field that is a message of one list is given as the list.

    Raises:
        InvalidSettingError: a value is of another type than its field, a number is outside of the field's range, or a
            text is not Unicode.
    """
    message = kind()
    field: Any  # protobuf's types name two classes of descriptors
    for field in kind.DESCRIPTOR.fields:
        if (value := values.get(field.name)) is None:
            continue
        try:
            _check_field(field, value)
            within = field.message_type and not field.is_repeated
            message.MergeFrom(kind(**{field.name: {_element(field).name: value} if within else value}))
        except TypeError:
            raise InvalidSettingError(f"{field.name} is of type {type(value).__name__}; give {_word(field)}") from None
    return message


def _check_field(field: FieldDescriptor, value: Any) -> None:
    element = _element(field)
    several = field.is_repeated or element.is_repeated
    if several and isinstance(value, (str, bytes)):
        raise TypeError  # its letters are texts, too
    for one in value if several else (value,):
        if isinstance(one, str):
            check_text(field.name, one)
        elif isinstance(one, int) and element.cpp_type in _WHOLE:
            low, high = _WHOLE[element.cpp_type]
            if not low <= one <= high:
                raise InvalidSettingError(f"{field.name} is {_short(one)}; a message holds {low} to {high}")


def _element(field: FieldDescriptor) -> FieldDescriptor:
    """What a field holds: a map is checked by its keys, and a message of one list by that list."""
    found: FieldDescriptor = field.message_type.fields[0] if field.message_type else field
    return found


def _word(field: FieldDescriptor) -> str:
    """What a field takes, in words."""
    element = _element(field)
    if field.is_repeated and field.message_type:
        return "a dict of numbers by token id"
    one, several = _WORDS.get(element.cpp_type, ("a whole number", "a list of whole numbers"))
    return several if element.is_repeated else one


def check_text(name: str, text: str) -> None:
    """Check that a text can be sent.

    Raises:
        InvalidSettingError: it holds lone surrogates, as a command line has for bytes that are not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidSettingError(f"{name} is not valid Unicode (lone surrogates); give UTF-8 text") from None


def check_prompt(prompt: object) -> None:
    """Check what a prompt is made of. Bytes are refused: as a sequence of numbers, they would be taken for token ids.

    Raises:
        InvalidSettingError: it is neither text nor a sequence of token ids.
    """
    ids = hasattr(prompt, "__len__") and hasattr(prompt, "__getitem__")
    if not ids or isinstance(prompt, (bytes, bytearray, memoryview, Mapping)):
        raise InvalidSettingError(
            f"the prompt is of type {type(prompt).__name__}; give text, or a sequence of token ids"
        )


def prompt_ids(ids: Sequence[int]) -> pb.PromptIds:
    """Token ids as a message.

    Raises:
        InvalidSettingError: an id is no whole number, negative, or too large for any vocabulary.
    """
    try:
        return pb.PromptIds(ids=ids)
    except TypeError:
        raise InvalidSettingError("token ids are whole numbers; one of them is not") from None
    except ValueError:
        bad = next(one for one in ids if not 0 <= one <= MOST_ID)
        raise InvalidSettingError(f"token id {_short(bad)}; a message holds 0 to {MOST_ID}") from None


def seconds_left(timeout: float | None) -> float | None:
    """A timeout as gRPC takes it: None for none, and for one beyond NO_TIMEOUT.

    Raises:
        InvalidSettingError: it is negative or not a number.
    """
    if timeout is None:
        return None
    if math.isnan(timeout) or timeout < 0:
        raise InvalidSettingError(f"timeout is {timeout}; it must be at least 0")
    return None if timeout > NO_TIMEOUT else timeout


def in_parts(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Consecutive parts of `size` ids."""
    return (ids[start : start + size] for start in range(0, len(ids), size))


def check_ids(parts: Iterable[Sequence[int]]) -> None:
    """Check the ids of a prompt that goes in parts, before the first one goes.

    Raises:
        InvalidSettingError: as `prompt_ids`.
    """
    for part in parts:
        try:
            fits = min(whole := array("q", part)) >= 0 and max(whole) <= MOST_ID
        except (TypeError, OverflowError):
            fits = False
        if not fits:
            prompt_ids(part)


def _short(number: int) -> str:
    """A number as text; a very long one by its size, because Python refuses to write it."""
    return str(number) if abs(number) < 10**40 else f"about {'-' if number < 0 else ''}2^{number.bit_length()}"
