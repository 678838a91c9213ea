"""Tells the weights of one directory from those of another, without reading all of them."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

from medha_jax.checkpoints.description import DESCRIPTION, ITEM, is_described
from medha_jax.checkpoints.safetensors_files import HEADER_LIMIT, INDEX

SAMPLE = 2**16  # bytes that are read at once
SAMPLES = 8  # of a file's values, the first and the last ones among them
DIGITS = 16  # of a file's digest


def fingerprint(directory: Path) -> dict[str, str]:
    """Length and digest of each file that says which weights a directory holds, by name.

    A safetensors file counts by its header, which names tensors, types and shapes, and by samples of its values. A
    converted directory counts by `medha.json` and its manifests: names of its other files are drawn at random when it
    is converted, so only a copy has the same ones.
    """
    whole = [directory / "config.json", directory / INDEX, directory / DESCRIPTION]
    if is_described(directory):
        whole += sorted(file for file in (directory / ITEM).rglob("*") if file.name in ("manifest.ocdbt", "_METADATA"))
    found = {_name(directory, file): _entry(file, file.read_bytes()) for file in whole if file.is_file()}
    for file in sorted(directory.glob("*.safetensors")):
        found[_name(directory, file)] = _entry(file, _samples(file))
    return found


def _name(directory: Path, file: Path) -> str:
    return file.relative_to(directory).as_posix()


def _entry(file: Path, content: bytes) -> str:
    return f"{file.stat().st_size:,} bytes, digest {hashlib.sha256(content).hexdigest()[:DIGITS]}"


def _samples(file: Path) -> bytes:
    """The header of a safetensors file, or what stands in its place, and samples that are spread over its values."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        parts = [prefix, stream.read(min(length, HEADER_LIMIT))]
        first, last = stream.tell(), max(stream.tell(), size - SAMPLE)
        for number in range(SAMPLES):
            stream.seek(first + (last - first) * number // (SAMPLES - 1))
            parts.append(stream.read(SAMPLE))
    return b"".join(parts)
