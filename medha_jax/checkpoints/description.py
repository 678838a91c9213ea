"""`medha.json`: describes a converted directory and its weight files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medha_jax.checkpoints.errors import DTYPES, CheckpointError, mismatch

FORMAT = 1
DESCRIPTION, ITEM = "medha.json", "parameters"
ADVICE = "Convert the model again."


@dataclass(frozen=True)
class Description:
    """Content of `medha.json`. `files` maps every file below `parameters/` to its length in bytes."""

    dtype: str
    files: Mapping[str, int]


def is_described(directory: Path) -> bool:
    """Whether `convert` wrote the directory, even if it is damaged."""
    return (directory / DESCRIPTION).exists() or (directory / ITEM).is_dir()


def describe(directory: Path) -> Description:
    """Read `medha.json`.

    Raises:
        CheckpointError: it is missing, broken or of another format.
    """
    try:
        content = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{directory} has no {DESCRIPTION}: it is incomplete. {ADVICE}") from None
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"{DESCRIPTION} in {directory} is not readable JSON. {ADVICE}") from None
    form = content.get("format") if isinstance(content, dict) else None
    if form != FORMAT:
        raise CheckpointError(
            f"{DESCRIPTION} in {directory} states format {form!r}; this version reads {FORMAT}. {ADVICE}"
        )
    dtype, files = content.get("dtype"), content.get("files")
    if dtype not in DTYPES or not isinstance(files, dict):
        raise CheckpointError(
            f"{DESCRIPTION} in {directory} must state a dtype ({', '.join(DTYPES)}) and its files. {ADVICE}"
        )
    return Description(dtype, files)


def write_description(directory: Path, dtype: str) -> None:
    """Write `medha.json` beside a finished `parameters/`."""
    content = {"format": FORMAT, "dtype": dtype, "files": _lengths(directory / ITEM)}
    (directory / DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_files(directory: Path) -> None:
    """Compare the files below `parameters/` and their lengths with `medha.json`.

    Raises:
        CheckpointError: names the first few files that are missing or have another length.
    """
    stated, item = describe(directory).files, directory / ITEM
    if not item.is_dir():
        raise CheckpointError(f"{directory} has no {ITEM}/: it is incomplete. {ADVICE}")
    found = _lengths(item)
    problems = []
    for file, length in stated.items():
        if file not in found:
            problems.append(f"{ITEM}/{file} is missing; expected {length} bytes")
        elif found[file] != length:
            problems.append(f"{ITEM}/{file} has {found[file]} bytes; expected {length}")
    if problems:
        raise mismatch(f"the weights in {directory} are damaged", problems, ADVICE)


def _lengths(item: Path) -> dict[str, int]:
    files = sorted(path for path in item.rglob("*") if path.is_file())
    return {path.relative_to(item).as_posix(): path.stat().st_size for path in files}
