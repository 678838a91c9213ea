"""Reads the headers of safetensors files.

Format: length of the header in 8 little-endian bytes, the header as JSON, the values.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medha_jax.checkpoints.errors import CheckpointError, mismatch
from medha_jax.specs.sizes import ITEM_BYTES

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STORED_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
# the format's own limit on a header
HEADER_LIMIT = 100_000_000
ADVICE = "Download or export the files again."


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a file. `dtype` is the format's code, such as `BF16`; `nbytes` are those of its values."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def read_tensors(directory: Path) -> tuple[dict[str, TensorHeader], list[str]]:
    """Every tensor of a Hugging Face directory by name, and the names of those that its index leaves out.

    No values are read. As in the transformers library, a single `model.safetensors` takes precedence over an index. An
    index decides which tensors count, and which file's if several have one.

    Raises:
        CheckpointError: a file is missing, truncated or not safetensors, or the index does not fit the files.
    """
    if (directory / SINGLE).is_file():
        return read_header(directory, SINGLE), []
    if not (directory / INDEX).is_file():
        raise CheckpointError(
            f"{directory} holds neither {SINGLE} nor {INDEX}. Only safetensors weights can be read: pickled "
            "ones (pytorch_model.bin) must be saved again with safe serialization"
        )
    weight_map = _weight_map(directory)
    tensors: dict[str, TensorHeader] = {}
    left_out = []
    for file in sorted(set(weight_map.values())):
        for name, header in read_header(directory, file).items():
            if weight_map.get(name) == file:
                tensors[name] = header
            else:
                left_out.append(name)
    lacking = [(name, file) for name, file in sorted(weight_map.items()) if name not in tensors]
    problems = [f"{INDEX} places tensor {name} in {file}, which lacks it" for name, file in lacking]
    if problems:
        raise mismatch(f"the index in {directory} does not fit its files", problems, ADVICE)
    return tensors, left_out


def _weight_map(directory: Path) -> dict[str, str]:
    """The index's map of tensors to files; every file exists in the same directory."""
    try:
        weight_map = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(part, str) for item in weight_map.items() for part in item):
            raise TypeError
    except OSError as error:
        raise CheckpointError(f"{INDEX} in {directory} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f'{INDEX} in {directory} must be JSON of the form {{"weight_map": {{tensor: file}}}}. {ADVICE}'
        ) from None
    problems = []
    for file in sorted(set(weight_map.values())):
        if "/" in file or "\\" in file or not file.endswith(".safetensors"):
            problems.append(f"{INDEX} names {file!r}; a file must be a *.safetensors in the same directory")
        elif not (directory / file).is_file():
            problems.append(f"{INDEX} names {file}, which does not exist")
    if problems or not weight_map:
        raise mismatch(f"the index in {directory} does not fit its files", problems or ["it names no tensor"], ADVICE)
    return dict(weight_map)


def read_header(directory: Path, file: str) -> dict[str, TensorHeader]:
    """The tensors of one file, checked against the file's length.

    Raises:
        CheckpointError: names the file and the faulty tensor.
    """
    path = directory / file
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if len(prefix) < 8 or 8 + length > size:
                needed = 8 + length if len(prefix) == 8 else 8
                raise CheckpointError(
                    f"{file} in {directory} is truncated or not safetensors: its header ends at byte "
                    f"{needed}, the file has {size} bytes. {ADVICE}"
                )
            if length > HEADER_LIMIT:
                raise _not_safetensors(directory, file, f"a header of {length} bytes; {HEADER_LIMIT} are allowed")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{file} in {directory} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _not_safetensors(directory, file, "a header that is not JSON") from None
    if not isinstance(header, dict):
        raise _not_safetensors(directory, file, "a header that is not a JSON object")
    header.pop("__metadata__", None)
    tensors, ends = {}, []
    for name, entry in header.items():
        tensors[name], end = _tensor(directory, file, name, entry, size - 8 - length)
        ends.append(end)
    surplus = size - 8 - length - max(ends, default=0)
    if surplus:
        raise _not_safetensors(directory, file, f"{surplus} bytes behind its last tensor")
    return tensors


def _not_safetensors(directory: Path, file: str, found: str) -> CheckpointError:
    return CheckpointError(f"{file} in {directory} is not a valid safetensors file: it has {found}. {ADVICE}")


def _tensor(directory: Path, file: str, name: str, entry: Any, available: int) -> tuple[TensorHeader, int]:
    """One entry of a header, and the offset of its end."""
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, start, end)
        valid = isinstance(dtype, str) and all(type(number) is int and number >= 0 for number in numbers)
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid or start > end:
        raise _not_safetensors(directory, file, f"a broken entry for tensor {name}")
    if end > available:
        raise CheckpointError(
            f"{file} in {directory} is truncated: tensor {name} ends at byte {end} of the values, of which "
            f"the file has {available}. {ADVICE}"
        )
    expected = math.prod(shape) * ITEM_BYTES.get(STORED_DTYPES.get(dtype, ""), 0)
    if dtype in STORED_DTYPES and end - start != expected:
        raise CheckpointError(
            f"{file} in {directory} is corrupt: tensor {name} of dtype {dtype} and shape {list(shape)} needs "
            f"{expected} bytes, its offsets leave {end - start}. {ADVICE}"
        )
    return TensorHeader(file, dtype, shape, end - start), end
