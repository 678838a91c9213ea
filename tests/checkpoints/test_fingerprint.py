"""Weights that differ are told apart, and copies are not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from medha_jax.checkpoints import fingerprint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with files of both forms, as far as their names and headers count."""
    directory = tmp_path / "model"
    manifest = directory / "parameters" / "ocdbt.process_0" / "manifest.ocdbt"
    manifest.parent.mkdir(parents=True)
    manifest.write_bytes(b"d/0123")
    (directory / "medha.json").write_text('{"files": {"d/0123": 5}}')
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors.index.json").write_text("{}")
    save_file({"a": np.zeros((2**20,), np.float32)}, directory / "model-1.safetensors")
    return directory


def values(directory: Path) -> None:
    save_file({"a": np.ones((2**20,), np.float32)}, directory / "model-1.safetensors")


def names(directory: Path) -> None:
    save_file({"b": np.zeros((2**20,), np.float32)}, directory / "model-1.safetensors")


def last_value(directory: Path) -> None:
    zeros = np.zeros((2**20,), np.float32)
    zeros[-1] = 1
    save_file({"a": zeros}, directory / "model-1.safetensors")


def writing(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_text("[1]") and None


MANIFEST = "parameters/ocdbt.process_0/manifest.ocdbt"


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (values, "model-1.safetensors"),
        (names, "model-1.safetensors"),
        (last_value, "model-1.safetensors"),
        *((writing(name), name) for name in ("config.json", "model.safetensors.index.json", "medha.json", MANIFEST)),
        (writing("model-2.safetensors"), "model-2.safetensors"),
    ],
)
def test_a_change_shows_in_its_file_only(model: Path, change: Callable[[Path], None], file: str) -> None:
    before = fingerprint(model)
    copy = shutil.copytree(model, model.parent / "copy")
    assert fingerprint(copy) == before
    change(copy)
    after = fingerprint(copy)
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} == {file}
    assert json.loads(json.dumps(after)) == after


def test_large_files_are_not_read_as_a_whole(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write((2).to_bytes(8, "little") + b"{}")
        file.truncate(2**40)  # reading that would take minutes
    assert fingerprint(tmp_path)["model.safetensors"].startswith("1,099,511,627,776 bytes, digest ")
