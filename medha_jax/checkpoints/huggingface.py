"""Reads the weights of a Hugging Face directory: checks the headers, then reads slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open

from medha_jax.checkpoints.errors import CheckpointError, float_dtype, mismatch
from medha_jax.checkpoints.safetensors_files import (
    ADVICE,
    INDEX,
    SINGLE,
    STORED_DTYPES,
    TensorHeader,
    read_tensors,
)
from medha_jax.checkpoints.stored_tensors import TABLE, Index, bounded
from medha_jax.machine import cores
from medha_jax.models import ParameterSpec, parameter_specs
from medha_jax.specs.model import Architecture

# threads that copy layers; with more, the memory bus is the limit
COPY_THREADS = 8
# tensors that some libraries store, and that follow from config.json
BUFFERS = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached")
EMBEDDING, HEAD = TABLE["embedding"].name, TABLE["head"].name
COMPARED_BYTES = 64 << 20  # of each tensor at once
NAMED = 3


def present(directory: Path) -> bool:
    """Whether the directory holds safetensors weights."""
    return (directory / SINGLE).is_file() or (directory / INDEX).is_file()


def stored_dtype(directory: Path) -> str:
    """The dtype of most bytes of the weights, such as `bfloat16`.

    Raises:
        CheckpointError: as `read_tensors`, or the dtype is not supported.
    """
    sizes: Counter[str] = Counter()
    for header in read_tensors(directory)[0].values():
        sizes[header.dtype] += header.nbytes
    code = max(sizes, key=lambda dtype: sizes[dtype], default="none")
    if code not in STORED_DTYPES:
        raise CheckpointError(
            f"the weights in {directory} are stored as {code}; supported are {', '.join(STORED_DTYPES)}"
        )
    return STORED_DTYPES[code]


@dataclass(frozen=True)
class Reader:
    """An open checkpoint that fits its model. `opened` owns the files and closes them.

    `unread` are the names of tensors that are not part of the model and change nothing.
    """

    directory: Path
    specs: Mapping[str, ParameterSpec]
    tensors: Mapping[str, TensorHeader]
    files: Mapping[str, Any]
    pool: ThreadPoolExecutor
    unread: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """One line about the tensors that are not read, if there are any."""
        if not self.unread:
            return ()
        names, more = ", ".join(self.unread[:NAMED]), len(self.unread) - NAMED
        return (f"tensors that are not read: {names}{f' and {more} more' if more > 0 else ''}",)

    def dtype(self, parameter: str) -> np.dtype[Any]:
        """The narrowest supported dtype that holds the stored values of every layer exactly."""
        names = TABLE[parameter].names(self.specs[parameter].shape)
        stored = {STORED_DTYPES[self.tensors[name].dtype] for name in names}
        return float_dtype(stored.pop() if len(stored) == 1 else "float32")

    def read(self, parameter: str, index: Index, dtype: Any) -> np.ndarray:
        """Read the slice `index` of a parameter, cast to `dtype`. Nothing else is read.

        Args:
            index: one slice per dimension of the parameter, with step 1.

        Raises:
            CheckpointError: a file became unreadable, or float16 cannot hold the values.
        """
        shape = self.specs[parameter].shape
        stored = TABLE[parameter]
        index = bounded(index, shape)
        target = np.empty([part.stop - part.start for part in index], dtype)
        names, parts, inner = stored.names(shape), [target], index
        if stored.stacked:
            names, parts, inner = names[index[0]], list(target), index[1:]
        sizes = stored.layer_shape(shape)

        def copy(name: str, part: np.ndarray) -> None:
            header = self.tensors[name]
            try:
                source = self.files[header.file].get_slice(name)
                # values too large for float16 raise a clearer error below
                with np.errstate(over="ignore"):
                    stored.fill(part, inner, sizes, lambda at: source[at])
            except (SafetensorError, OSError):
                raise CheckpointError(
                    f"tensor {name} in {header.file} of {self.directory} cannot be read. {ADVICE}"
                ) from None
            if target.dtype == np.float16 and header.dtype != "F16" and not np.isfinite(part).all():
                raise CheckpointError(
                    f"tensor {name} holds values that are not finite in float16, whose largest is 65504; "
                    "load it as bfloat16 or float32"
                )

        list(self.pool.map(copy, names, parts))
        return target


@contextmanager
def opened(directory: Path, arch: Architecture) -> Iterator[Reader]:
    """Check a directory against the model and open its files. No values are read, except for a tied head's.

    Raises:
        CheckpointError: names the first few faulty tensors or files, with found and expected values; or there is a head
            that differs from the embeddings, and the config says that they are the same.
    """
    tensors, left_out = read_tensors(directory)
    specs = parameter_specs(arch, "float32")
    unread = [*_check(directory, tensors, specs, arch.tied_embeddings), *left_out]
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(min(COPY_THREADS, cores())))
        files = {}
        for file in sorted({header.file for header in tensors.values()}):
            try:
                files[file] = stack.enter_context(safe_open(directory / file, framework="numpy"))
            except (SafetensorError, OSError):
                raise CheckpointError(
                    f"{file} in {directory} is not a valid safetensors file: its tensors overlap or leave "
                    f"gaps. {ADVICE}"
                ) from None
        if arch.tied_embeddings and HEAD in tensors:
            _check_tied(directory, tensors, files)
            unread.remove(HEAD)
        yield Reader(directory, specs, tensors, files, pool, tuple(dict.fromkeys(unread)))


def _check(
    directory: Path, tensors: Mapping[str, TensorHeader], specs: Mapping[str, ParameterSpec], tied: bool
) -> list[str]:
    """Compare names, shapes and dtypes with the model; returns the names of harmless tensors that it lacks."""
    problems, expected, unread = [], set(), []
    for parameter, spec in specs.items():
        shape = TABLE[parameter].stored_shape(spec.shape)
        for name in TABLE[parameter].names(spec.shape):
            expected.add(name)
            header = tensors.get(name)
            if header is None:
                problems.append(f"tensor {name} is missing; expected shape {list(shape)}")
            elif header.shape != shape:
                problems.append(
                    f"tensor {name} in {header.file} has shape {list(header.shape)}; expected {list(shape)}"
                )
            elif header.dtype not in STORED_DTYPES:
                problems.append(
                    f"tensor {name} in {header.file} is stored as {header.dtype}; supported are "
                    f"{', '.join(STORED_DTYPES)}"
                )
    for name, header in tensors.items():
        if name in expected:
            continue
        if name.endswith(BUFFERS) or (tied and name == HEAD):
            unread.append(name)
        else:
            problems.append(f"tensor {name} in {header.file} of shape {list(header.shape)} is not part of this model")
    if problems:
        raise mismatch(
            f"the weights in {directory} do not fit the model that config.json describes",
            problems,
            "Use the config.json that belongs to these weights, or download the model again.",
        )
    return unread


def _check_tied(directory: Path, tensors: Mapping[str, TensorHeader], files: Mapping[str, Any]) -> None:
    """Compare a stored head with the embeddings, which `config.json` says are the same."""
    head, embedding = tensors[HEAD], tensors[EMBEDDING]
    same = head.shape == embedding.shape and head.dtype in STORED_DTYPES
    if same:
        rows, width = head.shape
        step = max(1, COMPARED_BYTES // (4 * width))
        try:
            ours, theirs = (
                files[header.file].get_slice(name) for name, header in ((EMBEDDING, embedding), (HEAD, head))
            )
            for start in range(0, rows, step):
                part = slice(start, min(start + step, rows))
                left, right = (np.asarray(tensor[part], np.float32) for tensor in (ours, theirs))
                if not np.array_equal(left, right, equal_nan=True):
                    same = False
                    break
        except (SafetensorError, OSError):
            raise CheckpointError(f"{HEAD} or {EMBEDDING} of {directory} cannot be read. {ADVICE}") from None
    if not same:
        raise CheckpointError(
            f"{HEAD} in {head.file} of {directory} differs from {EMBEDDING}, but tie_word_embeddings of config.json "
            "says that they are the same: set it to false to use this head, or remove the tensor"
        )
