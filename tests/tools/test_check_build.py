"""The list of imports against the source: what is missing, superfluous or out of order is named."""

from pathlib import Path

import pytest

from tools.check_build import declared_imports, problems, real_imports

ROOT = Path(__file__).parents[2]
REAL = {"config": {}, "kv": {}, "engine": {"kv": "medha_jax.engine.loop, line 3"}}


def test_the_list_and_the_source_agree():
    assert problems(declared_imports(ROOT / "imports.bzl"), real_imports("medha_jax")) == []


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"config": [], "kv": [], "engine": []}, "engine -> kv: imported by medha_jax.engine.loop, line 3, but not"),
        ({"config": [], "kv": [], "engine": ["config", "kv"]}, "engine -> config: allowed by imports.bzl, but no file"),
        ({"config": [], "engine": ["kv"], "kv": []}, "engine -> kv: imports.bzl lists kv below engine"),
        ({"kv": [], "engine": ["kv"]}, "config: imports.bzl has no line"),
        ({"config": [], "kv": [], "engine": ["kv"], "gone": []}, "gone: stands in imports.bzl"),
        ({"config": [], "kv": [], "engine": ["kv", "kv"]}, "engine: its imports in imports.bzl are not sorted"),
    ],
)
def test_each_disagreement_is_named(declared, message):
    found = problems(declared, REAL)
    assert len(found) == 1
    assert found[0].startswith(message)


def test_a_list_without_its_dictionary_is_refused(tmp_path):
    file = tmp_path / "imports.bzl"
    file.write_text("PARTS = {}\n")
    with pytest.raises(ValueError, match="assigns no IMPORTS"):
        declared_imports(file)
