"""Writes parameters as a Hugging Face directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from medha_jax.checkpoints.directory import new_directory
from medha_jax.checkpoints.errors import CheckpointError, float_dtype, mismatch
from medha_jax.checkpoints.safetensors_files import INDEX, SINGLE
from medha_jax.checkpoints.stored_tensors import TABLE
from medha_jax.models import ParameterSpec, parameter_specs
from medha_jax.specs.model import Architecture


def write_huggingface(
    directory: Path,
    config: Mapping[str, Any],
    params: Mapping[str, jax.Array | np.ndarray],
    max_shard_bytes: int | None = None,
) -> None:
    """Write `config.json` and safetensors weights that the transformers library can read.

    The directory appears complete or not at all. Host memory: the tensors of one file.

    Args:
        directory: new or empty directory.
        config: the content of `config.json`.
        params: every parameter by dotted path, shapes as in `parameter_specs`; stored in its own dtype.
        max_shard_bytes: most bytes of values per file; None writes a single file.

    Raises:
        CheckpointError: the directory is in use, or the parameters are not those of the config's model.
    """
    if max_shard_bytes is not None and max_shard_bytes < 1:
        raise CheckpointError(f"max_shard_bytes is {max_shard_bytes}; give at least 1, or None for a single file")
    _check(params, parameter_specs(Architecture.from_config(config), "float32"))
    shards = _shards(params, max_shard_bytes)
    with new_directory(directory) as new:
        (new / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            tensors: dict[str, np.ndarray] = {}
            for parameter, layers in shard.items():
                values, stored = np.asarray(params[parameter]), TABLE[parameter]
                names = stored.names(values.shape)
                for layer in layers:
                    tensors[names[layer]] = stored.to_stored(values[layer] if stored.stacked else values)
            save_file(tensors, new / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, file)
        if len(shards) > 1:
            total = sum(value.nbytes for value in params.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (new / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(params: Mapping[str, Any], limit: int | None) -> list[dict[str, list[int]]]:
    """Layers of each parameter in each file; `[0]` for parameters without layers."""
    shards: list[dict[str, list[int]]] = [{}]
    filled = 0
    for parameter, value in params.items():
        layers = value.shape[0] if TABLE[parameter].stacked else 1
        size = value.nbytes // layers
        for layer in range(layers):
            if limit is not None and filled and filled + size > limit:
                shards.append({})
                filled = 0
            shards[-1].setdefault(parameter, []).append(layer)
            filled += size
    return shards


def _check(params: Mapping[str, Any], specs: Mapping[str, ParameterSpec]) -> None:
    """Check names, shapes and dtypes; the error names the first few faulty parameters."""
    problems = [f"parameter {name} is missing" for name in specs if name not in params]
    for name, value in params.items():
        if name not in specs:
            problems.append(f"parameter {name} is not part of this model")
        elif tuple(value.shape) != specs[name].shape:
            problems.append(f"parameter {name} has shape {list(value.shape)}; expected {list(specs[name].shape)}")
        elif isinstance(value, jax.Array) and not value.is_fully_addressable:
            problems.append(f"parameter {name} lies on other processes, too; write it from a single process")
        else:
            float_dtype(value.dtype)
    if problems:
        raise mismatch("the parameters do not fit the model", problems, "Pass exactly those of parameter_specs.")
