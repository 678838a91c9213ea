import json
import math
import re

import pytest
from hypothesis import example, given

from medha_jax.server.http.errors import FieldRefusal, encoded
from medha_jax.server.http.json_fields import Fields, is_integers, numbers_by_id, read_json
from medha_jax.server.refusal import Refusal
from tests.server.http.any_json import VALUES, outcome

METHODS = ("number", "integer", "switch", "text", "integers", "texts", "inner")


def refused(read, *given):
    with pytest.raises(FieldRefusal) as raised:
        read(*given)
    return raised.value.param, raised.value.message


@given(VALUES)
@example(["Infinity", math.inf, -math.inf])
def test_json_is_read_as_it_was_written(value):
    # a float that is too large is read as infinite; the word stands only outside of texts
    texts_and_infinities = r'"(?:[^"\\]|\\.)*"|Infinity'
    written = re.sub(texts_and_infinities, lambda m: "1e999" if m[0] == "Infinity" else m[0], json.dumps(value))
    assert read_json(written.encode()) == value


@pytest.mark.parametrize(
    "data, why",
    [
        (b"", "is not JSON: Expecting value"),
        (b"{", "is not JSON: Expecting property name"),
        (b'{"a": 1} x', "is not JSON: Extra data"),
        (b'{"a": NaN}', "is not JSON: NaN is no number of JSON"),
        (b"[-Infinity]", "is not JSON: -Infinity is no number of JSON"),
        (b'"\xff\xfe"', "is not JSON: 'utf-8' codec"),
        (b'"a\nb"', "is not JSON: Invalid control character"),
        (b"1" * 5000, "is not JSON: Exceeds the limit"),
        (b"[" * 100_000, "nests too deeply"),
        (b'{"a":' * 100_000, "nests too deeply"),
    ],
)
def test_what_is_no_json_is_refused(data, why):
    with pytest.raises(Refusal) as raised:
        read_json(data)
    assert why in raised.value.message and len(raised.value.message) < 200


@given(VALUES)
def test_only_objects_have_fields(value):
    if isinstance(value, dict):
        Fields(value)
        return
    param, message = refused(Fields, value)
    assert param == "" and message.startswith("the body is ") and message.endswith("; allowed is an object")


@given(VALUES)
@example(10**400)
@example(-(10**400))
def test_every_value_is_taken_as_its_type_or_refused_by_its_name(value):
    for method in METHODS:
        fields = Fields({"outer": {"a": value}}).inner("outer")
        _, refusal = outcome(getattr(fields, method), "a")
        if refusal is not None:
            assert refusal.param == "outer.a"
            assert refusal.message.startswith("outer.a is ") and "; allowed is " in refusal.message
            assert len(refusal.message) < 300 and json.loads(encoded(refusal.message)) == refusal.message
        fields.end()


def test_values_of_the_right_type():
    given = {"n": 3.0, "f": 0.5, "i": 7, "s": True, "t": "x", "ts": "one", "tl": ["a", "b"], "l": [1, 2], "none": None}
    fields = Fields(given)
    assert fields.integer("n") == 3 and isinstance(Fields({"n": 3.0}).integer("n"), int)
    assert fields.number("f") == 0.5 and fields.number("i") == 7
    assert fields.switch("s") is True and fields.text("t") == "x"
    assert fields.texts("ts") == ["one"] and fields.texts("tl") == ["a", "b"]
    assert fields.integers("l") == [1, 2]
    assert all(getattr(fields, method)("none") is None for method in METHODS), "null counts as not there"
    fields.end()
    assert is_integers([]) and not is_integers([True]) and not is_integers([1.0]) and not is_integers("1")


@pytest.mark.parametrize(
    "method, value, said",
    [
        ("number", "0.5", "a is '0.5'; allowed is a number"),
        ("number", True, "a is true; allowed is a number"),
        ("number", 1e999, "a is inf; allowed is a number"),
        ("number", 10**400, "; allowed is a number"),
        ("integer", 2.5, "a is 2.5; allowed is a whole number"),
        ("switch", 1, "a is 1; allowed is true or false"),
        ("text", 5, "a is 5; allowed is a text"),
        ("texts", ["a", 5], "a is a list; allowed is a text or a list of texts"),
        ("integers", [1, 2.0], "a is a list; allowed is a list of whole numbers"),
        ("inner", [], "a is a list; allowed is an object"),
        ("number", {"b": 1}, "a is an object; allowed is a number"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(method, value, said):
    param, message = refused(getattr(Fields({"a": value}), method), "a")
    assert param == "a" and said in message


def test_no_content_is_in_an_error():
    """What is within lists and objects may be a prompt, and errors stand in the log."""
    for body in (["secret"], "secret"):
        assert "secret" not in refused(Fields, body)[1]
    for value in (["secret", 5], {"text": "secret"}):
        for method in ("text", "texts", "integers", "number"):
            _, refusal = outcome(getattr(Fields({"prompt": value}), method), "prompt")
            assert refusal is None or "secret" not in refusal.message
    assert "secret" not in refused(lambda: Fields({"a": ["secret"]}).only("a", ("",), "no"))[1]


def test_unknown_fields_are_named_but_not_all_of_them():
    param, message = refused(Fields({"zz": 1, "a": 0, "null": None}).end)
    assert param == "a" and message.startswith("unknown fields: a, zz; ")
    _, message = refused(Fields({f"name-{'x' * 1000}-{n}": 1 for n in range(100)}).end)
    assert "and 92 more" in message and len(message) < 500
    inner = Fields({"stream_options": {"a": 1}}).inner("stream_options")
    assert refused(inner.end)[0] == "stream_options.a"


def test_fields_that_change_nothing_are_told():
    fields = Fields({"user": "me", "metadata": None, "other": 1})
    fields.ignore("user", "metadata", "absent")
    assert fields.ignored == ["user"]
    fields.only("other", (1,), "only one")
    assert refused(lambda: Fields({"other": 2}).only("other", (1,), "only one")) == ("other", "other is 2; only one")


@given(VALUES)
@example({"5": 10**400})
@example({"5": 1e999})
@example({"5": True})
@example(False)
@example("")
@example([])
def test_numbers_by_id_are_finite_or_refused(value):
    found, refusal = outcome(numbers_by_id, Fields({"logit_bias": value}), "logit_bias")
    if refusal is not None:
        assert refusal.param == "logit_bias" and "an object of numbers by token id" in refusal.message
    else:
        assert value is None or isinstance(value, dict)
        assert all(isinstance(key, int) and abs(bias) < float("inf") for key, bias in found.items())


def test_numbers_by_id():
    assert numbers_by_id(Fields({"b": {"5": 1, "7": -0.5}}), "b") == {5: 1.0, 7: -0.5}
    assert numbers_by_id(Fields({"b": {}}), "b") == numbers_by_id(Fields({}), "b") == {}
    for key in ("-1", "5.0", "", " 5", "٥", "1" * 11):
        assert refused(lambda key=key: numbers_by_id(Fields({"b": {key: 1}}), "b"))[0] == "b"
