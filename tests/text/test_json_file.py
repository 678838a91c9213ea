"""The small JSON files of a model directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from medha_jax.text.json_file import read_object


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("null", "x.json holds null; it must be a JSON object"),
        ("[]", "x.json holds a list; it must be a JSON object"),
        ('{"a": ' + "1" * 5000 + "}", "x.json is not valid JSON"),
    ],
)
def test_what_is_no_object_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match="json") as caught:
        read_object(tmp_path / "x.json", ValueError)
    assert message in str(caught.value)


def test_no_file_is_an_empty_object(tmp_path: Path) -> None:
    assert read_object(tmp_path / "x.json", ValueError) == {}
