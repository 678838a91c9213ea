"""Machine code in files: what one start keeps the next one takes, and nothing else."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from medha_jax.native import machine_code
from medha_jax.native.machine_code import CodeFolder

KEY, CODE = b"what determines it", bytes(range(256)) * 8


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_what_is_written_is_read_again_by_its_key_alone(tmp_path: Path) -> None:
    folder = CodeFolder(tmp_path)
    assert folder.read(KEY) is None
    folder.write(KEY, CODE)
    assert CodeFolder(tmp_path).read(KEY) == CODE
    assert folder.read(KEY + b"!") is None
    assert only_file(tmp_path).stat().st_mode & 0o777 == 0o600


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def flipped(file: Path) -> None:
    stored = bytearray(file.read_bytes())
    stored[len(stored) // 2] ^= 1
    file.write_bytes(stored)


def of_another_key(file: Path) -> None:
    content = file.read_bytes()
    other = file.parent / "other"
    other.mkdir()
    CodeFolder(other).write(b"another processor's", CODE)
    foreign = only_file(other)
    assert foreign.read_bytes() != content
    foreign.replace(file)
    other.rmdir()


def written_by_a_group(file: Path) -> None:
    file.chmod(0o620)


def written_by_all(file: Path) -> None:
    file.chmod(0o602)


def too_large(file: Path) -> None:
    os.truncate(file, 2**40)


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


def unreadable(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


@pytest.mark.parametrize(
    "spoil", [cut, emptied, flipped, of_another_key, written_by_a_group, written_by_all, too_large, a_pipe, unreadable]
)
def test_a_file_that_may_not_run_is_told_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    folder = CodeFolder(tmp_path)
    folder.write(KEY, CODE)
    file = only_file(tmp_path)
    spoil(file)
    assert folder.read(KEY) is None
    (line,) = caplog.messages
    assert line.startswith("a kernel is compiled anew") and str(file) in line and "\n" not in line
    folder.write(KEY, CODE)
    assert folder.read(KEY) == CODE
    assert only_file(tmp_path) == file
    assert len(caplog.messages) == 1


def test_a_file_of_another_user_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CodeFolder(tmp_path)
    folder.write(KEY, CODE)
    file = only_file(tmp_path)
    real = os.fstat

    def of_somebody(descriptor: int) -> os.stat_result:
        found = list(real(descriptor))
        found[4] = os.geteuid() + 1
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", of_somebody)
    assert folder.read(KEY) is None
    monkeypatch.undo()
    assert folder.read(KEY) == CODE and file.exists()


@pytest.mark.parametrize("where", ["nowhere", "/proc/below"])
def test_without_a_place_nothing_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str) -> None:
    caplog.set_level(logging.INFO)
    folder = CodeFolder(tmp_path / where)
    assert folder.read(KEY) is None
    folder.write(KEY, CODE)
    assert folder.read(KEY) is None
    (line,) = caplog.messages
    assert line.startswith("a kernel is not kept")


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CodeFolder(tmp_path)
    folder.write(KEY, CODE)

    def full(*paths: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    folder.write(KEY, CODE * 2)
    monkeypatch.undo()
    assert folder.read(KEY) == CODE
    only_file(tmp_path)


def test_code_beyond_the_bound_is_not_kept(tmp_path: Path) -> None:
    folder = CodeFolder(tmp_path)
    folder.write(KEY, bytes(machine_code.MOST_BYTES + 1))
    assert not list(tmp_path.iterdir())
    folder.write(KEY, bytes(machine_code.MOST_BYTES))
    assert folder.read(KEY) == bytes(machine_code.MOST_BYTES)
