"""The schemas of the benchmark are what it says, and its verdicts can fail."""

import json

import jsonschema
import pytest

from benchmarks.structured import ENDLESS, verdict
from benchmarks.structured_schemas import schemas


def test_schemas_are_valid_and_the_same_each_time_and_all_different():
    found = schemas(300, 5)
    assert found == schemas(300, 5) and len(set(found)) == 300 and found != schemas(300, 6)
    for schema in found:
        jsonschema.Draft202012Validator.check_schema(json.loads(schema))
    whole = " ".join(found)
    for keyword in ("prefixItems", "anyOf", "$ref", "pattern", "format", "multipleOf", "const", "enum", "minLength"):
        assert f'"{keyword}"' in whole


@pytest.mark.parametrize(
    ("reason", "text", "expected"),
    [
        ("stop", '{"a": "2026-11-30"}', "valid"),
        ("stop", '{"a": "2026-13-30"}', "wrong"),
        ("stop", '{"a": 5}', "wrong"),
        ("stop", '{"a": "2026-11-30"} x', "wrong"),
        ("length", '{"a"', "length"),
    ],
)
def test_an_output_is_valid_only_if_its_schema_holds(reason, text, expected):
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": "date"}}, "required": ["a"]}
    assert verdict(json.dumps(schema), reason, text) == expected


def test_the_endless_schema_is_met_by_no_short_output():
    assert verdict(json.dumps(ENDLESS), "stop", "[]") == "wrong"
