"""Converts Hugging Face directories to the runtime's own, one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medha_jax.checkpoints import huggingface
from medha_jax.checkpoints.errors import CheckpointError, float_dtype
from medha_jax.checkpoints.load import is_converted, stored_dtype
from medha_jax.specs.model import Architecture

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` wrote.

    Attributes:
        parameters: number of arrays.
        nbytes: bytes of the values before compression.
        dtype: the most frequent dtype of the values.
        files: files copied beside the weights.
        notes: warnings about the config and about tensors that were not read, a line each.
    """

    destination: Path
    parameters: int
    nbytes: int
    dtype: str
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


def convert(
    source: Path, destination: Path, dtype: Any = None, on_progress: Progress | None = None
) -> ConversionReport:
    """Convert a Hugging Face directory to a self-contained one that loads faster.

    `destination` appears complete or not at all. Host memory: two to three times the largest parameter with all layers.

    Args:
        source: directory with `config.json` and safetensors weights.
        destination: new or empty directory.
        dtype: bfloat16, float16 or float32. None keeps the stored dtype of each parameter; if a parameter's layers
            differ, it becomes float32, which holds them all exactly.
        on_progress: called with (dotted path just written, bytes done, total bytes).

    Raises:
        CheckpointError: the source cannot be read or is already converted, or the destination is in use.
        UnsupportedModelError: the source's model is not supported.
    """
    if is_converted(source):
        raise CheckpointError(f"{source} is already converted; copy it, or give the directory it was made from")
    from medha_jax.checkpoints import orbax  # takes 0.2 s

    wanted = None if dtype is None else float_dtype(dtype)
    arch = Architecture.from_directory(source)
    with huggingface.opened(source, arch) as reader:
        leaves = {}
        for name, spec in reader.specs.items():
            kept = wanted or reader.dtype(name)
            whole = tuple(slice(0, size) for size in spec.shape)
            leaves[name] = orbax.Leaf(spec.shape, kept, partial(reader.read, name, whole, kept))
        total, done = sum(leaf.nbytes for leaf in leaves.values()), 0

        def written(name: str) -> None:
            nonlocal done
            done += leaves[name].nbytes
            if on_progress is not None:
                on_progress(name, done, total)

        most = stored_dtype(source) if wanted is None else wanted.name
        files = orbax.write(destination, source, leaves, most, written)
        notes = (*arch.notes, *reader.notes)
    return ConversionReport(destination, len(leaves), total, most, files, notes)
