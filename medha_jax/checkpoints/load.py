"""Loads the weights of a model directory of either kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from medha_jax.checkpoints import huggingface
from medha_jax.checkpoints.description import DESCRIPTION, describe, is_described
from medha_jax.checkpoints.device_slices import Shapes, Shardings, enlarged, place, resolve, zero_filled
from medha_jax.checkpoints.errors import CheckpointError, float_dtype
from medha_jax.checkpoints.safetensors_files import INDEX, SINGLE
from medha_jax.specs.model import Architecture


def load_parameters(
    directory: Path,
    arch: Architecture,
    dtype: Any,
    shardings: Shardings,
    shapes: Shapes | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, jax.Array]:
    """Read every parameter of the model; each device reads only its slice.

    The whole directory is checked before any value is read. A converted directory is read in whole chunks of at most
    8 MiB, which may extend beyond a slice.

    Args:
        directory: safetensors weights (Hugging Face) or a directory of `convert`.
        arch: the model of `config.json`.
        dtype: of the arrays: bfloat16, float16 or float32; stored values are cast.
        shardings: one for every dotted path of `parameter_specs`, or a single one for all.
        shapes: larger shapes by dotted path; the rest of those arrays is zeros.
        report: called with a line about tensors that are not read.

    Returns:
        The arrays by dotted path, with `shapes`, else with those of `parameter_specs`.

    Raises:
        CheckpointError: names the faulty file, tensor or parameter, with found and expected values.
    """
    wanted = float_dtype(dtype)
    if is_converted(directory):
        from medha_jax.checkpoints import orbax  # takes 0.2 s

        return orbax.load(directory, arch, wanted, shardings, shapes)
    with huggingface.opened(directory, arch) as reader:
        if report is not None:
            for note in reader.notes:
                report(f"warning: {note}")
        specs = enlarged(reader.specs, shapes)
        resolved = resolve(shardings, specs)
        return {
            name: place(
                spec.shape,
                wanted,
                resolved[name],
                zero_filled(partial(reader.read, name, dtype=wanted), reader.specs[name].shape, wanted),
            )
            for name, spec in specs.items()
        }


def stored_dtype(directory: Path) -> str:
    """The dtype of most of a directory's weights: bfloat16, float16 or float32.

    Raises:
        CheckpointError: the directory holds no readable weights.
    """
    return describe(directory).dtype if is_converted(directory) else huggingface.stored_dtype(directory)


def is_converted(directory: Path) -> bool:
    """Whether `convert` wrote a directory; else it holds safetensors weights.

    Raises:
        CheckpointError: it is neither.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory; give the directory of a model")
    if is_described(directory):
        return True
    if huggingface.present(directory):
        return False
    raise CheckpointError(
        f"{directory} holds no weights that can be read: looked for {DESCRIPTION}, {SINGLE} and {INDEX}. "
        "Pickled weights (pytorch_model.bin) must be saved again with safe serialization"
    )
