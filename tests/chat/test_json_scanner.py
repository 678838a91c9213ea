from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.chat.json_scanner import DEEPEST_ARGUMENTS, CallScanner, JsonScanner, NoJsonError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=4)


def scanned(text: str) -> str:
    scanner = JsonScanner()
    out = "".join(map(scanner.push, text))
    assert scanner.expects == "nothing" and scanner.depth == 0
    return out


@given(OBJECTS, st.booleans(), st.sampled_from([None, 0, 3]))
def test_every_object_is_followed_to_its_end(value: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert scanned(text) == text


@given(st.text('{}[]:,"\\ truefalsn0123.-+eEuxé\n', max_size=14))
def test_what_is_accepted_is_json(text: str) -> None:
    scanner = JsonScanner()
    try:
        out = "".join(map(scanner.push, "{" + text))
    except NoJsonError:
        with pytest.raises(json.JSONDecodeError):
            json.loads("{" + text, strict=False)
        return
    if scanner.expects == "nothing":
        assert isinstance(json.loads(out), dict)


def test_a_line_break_in_a_string_is_written_as_json_writes_it() -> None:
    assert json.loads(scanned('{"a": "b\nc\t\x01"}')) == {"a": "b\nc\t\x01"}


@pytest.mark.parametrize(
    "text",
    ['{"a":1,}', '{,"a":1}', '{"a" 1}', '{"a":01}', '{"a":1.}', '{"a":tru}', '{"a":"\\x"}', '{"a":"\\u12g4"}', "[]",
     "{1:2}", "1", '{"a":[1,]}', '{"a":]}', '{"a":-}', '{"a":1e}', "{}}", '{"a":.5}', '{"a":+1}', '{"a":NaN}'],
)  # fmt: skip
def test_what_is_no_object_is_refused_at_once(text: str) -> None:
    with pytest.raises(NoJsonError):
        scanned(text)


def test_depth_and_length_are_bounded() -> None:
    with pytest.raises(NoJsonError):
        scanned('{"a":' + "[" * (DEEPEST_ARGUMENTS + 1))
    with pytest.raises(NoJsonError):
        scanned('{"a":' + "1" * 1000)


@given(
    st.text(min_size=1),
    OBJECTS,
    st.sampled_from(["arguments", "parameters"]),
    st.permutations(["name", "arguments", "type", "id"]),
)
def test_a_call_is_read_in_any_order(name: str, arguments: dict[str, Any], key: str, order: list[str]) -> None:
    values = {
        "name": ("name", name),
        "arguments": (key, arguments),
        "type": ("type", "function"),
        "id": ("id", [None, 1]),
    }
    scanner, text = CallScanner(), ""
    for character in json.dumps(dict(values[part] for part in order)):
        scanner.push(character)
        text += scanner.take()
    assert scanner.complete and scanner.begun
    assert (scanner.name, json.loads(text)) == (name, arguments)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": 5}',
        '{"name": null}',
        '{"name": {"a": 1}}',
        '{"name": "f", "name": "g"}',
        '{"arguments": "{}"}',
        '{"arguments": [1]}',
        '{"arguments": null}',
        '{"arguments": 5}',
        '{"arguments": {}, "parameters": {}}',
    ],
)
def test_what_is_no_call_is_refused(text: str) -> None:
    with pytest.raises(NoJsonError):
        [*map(CallScanner().push, text)]
