"""The runtime's own directories: weights as one Orbax item, and all other files that a server needs.

The files of COPIED  medha.json  parameters/
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from medha_jax.checkpoints.description import ADVICE, ITEM, check_files, write_description
from medha_jax.checkpoints.device_slices import Shapes, Shardings, check_finite, enlarged, resolve
from medha_jax.checkpoints.directory import new_directory
from medha_jax.checkpoints.errors import DTYPES, CheckpointError, float_dtype, mismatch
from medha_jax.models import ParameterSpec, parameter_specs
from medha_jax.specs.model import Architecture

COPIED = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
# A device reads whole chunks. Small chunks waste few bytes beyond its slice; large ones have less overhead.
CHUNK_BYTES = 8 << 20
# axes that meshes divide: each index starts a new chunk
CHUNKED_AXES = ("layers", "heads", "kv_heads")
GIGABYTE = 10**9


@dataclass(frozen=True)
class Leaf:
    """A parameter whose values are read just before they are written."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class _LeafHandler(ocp.type_handlers.NumpyHandler):  # type: ignore[misc]  # Orbax has no stubs
    """Writes leaves one after the other, so that only one is in memory."""

    def __init__(self, on_written: Callable[[str], None]) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self.on_written = on_written

    async def serialize(
        self, values: Sequence[Leaf], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values), strict=True):
            for commit in await super().serialize([value.read()], [info], [arg]):
                await asyncio.to_thread(commit.result)
            self.on_written(info.name)
        return []


def write(
    destination: Path, source: Path, leaves: Mapping[str, Leaf], dtype: str, on_written: Callable[[str], None]
) -> tuple[str, ...]:
    """Write a directory for `load`; returns the names of the files copied from `source`.

    The directory appears complete or not at all. Host memory: two to three times the largest parameter with all layers.

    Args:
        destination: new or empty directory.
        source: directory with the config and tokenizer to copy.
        leaves: every parameter by dotted path.
        dtype: result of `stored_dtype` for the new directory.
        on_written: called with each parameter's path when it is on disk.

    Raises:
        CheckpointError: the destination is in use, or there are several processes.
    """
    if jax.process_count() > 1:
        raise CheckpointError("a checkpoint is written by a single process; run this outside the distributed job")
    axes = {name: spec.axes for name, spec in parameter_specs(Architecture.from_directory(source), dtype).items()}
    # Orbax warns about a registry that cannot write jax.Array
    registry = ocp.type_handlers.create_type_handler_registry(
        (Leaf, _LeafHandler(on_written)), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    with new_directory(destination) as new:
        found = (path.relative_to(source) for pattern in COPIED for path in sorted(source.glob(pattern)))
        copied = tuple(str(name) for name in found if (source / name).is_file())
        for name in copied:
            (new / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, new / name)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as writer:
            chunks = {name: _chunks(leaf, axes[name]) for name, leaf in leaves.items()}
            writer.save(new / ITEM, args=ocp.args.PyTreeSave(dict(leaves), save_args=chunks))
        write_description(new, dtype)
    return copied


def _chunks(leaf: Leaf, axes: Sequence[str]) -> Any:
    if leaf.nbytes <= CHUNK_BYTES:
        return ocp.SaveArgs()
    divided = tuple(place for place, axis in enumerate(axes) if axis in CHUNKED_AXES)
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=divided)


def load(
    directory: Path, arch: Architecture, dtype: Any, shardings: Shardings, shapes: Shapes | None = None
) -> dict[str, jax.Array]:
    """Restore every parameter into its sharding; each device reads the chunks that hold its slice.

    Raises:
        CheckpointError: a file or parameter is missing, surplus, truncated or of the wrong shape (checked before any
            value is read), or values cannot be decoded.
    """
    wanted, stored = float_dtype(dtype), parameter_specs(arch, dtype)
    specs = enlarged(stored, shapes)
    resolved = resolve(shardings, specs)
    check_files(directory)
    targets = {name: jax.ShapeDtypeStruct(spec.shape, wanted, sharding=resolved[name]) for name, spec in specs.items()}
    # Orbax never reads more than its limit at once, so the limit must exceed the largest parameter.
    limit = max(8, 2 + 4 * max(int(np.prod(spec.shape, dtype=np.int64)) for spec in specs.values()) // GIGABYTE)
    item = (directory / ITEM).absolute()
    with ocp.StandardCheckpointer(restore_concurrent_gb=limit) as reader:
        narrowed = _check_metadata(directory, reader, item, targets, stored)
        try:
            # not strict: arrays larger than stored are filled with zeros
            params: dict[str, jax.Array] = reader.restore(item, targets, strict=False)
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            # Orbax raises a bare Exception; its text names the parameter among the storage settings
            at_fault = [name for name in targets if f"'{name}/'" in str(error)]
            what = f"parameter {at_fault[0]}" if at_fault else "a parameter"
            raise CheckpointError(f"{what} in {directory / ITEM} cannot be decoded. {ADVICE}") from error
    for name in narrowed:
        check_finite(name, params[name])
    return params


def _check_metadata(
    directory: Path,
    reader: Any,
    item: Path,
    targets: Mapping[str, jax.ShapeDtypeStruct],
    specs: Mapping[str, ParameterSpec],
) -> list[str]:
    """Compare names, shapes and dtypes; returns the parameters that will be cast down to float16."""
    try:
        stored = reader.metadata(item).item_metadata.tree
        found = {name: (list(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in stored.items()}
    except Exception as error:
        raise CheckpointError(f"{directory / ITEM} holds no readable Orbax metadata. {ADVICE}") from error
    problems, narrowed = [], []
    for name, target in targets.items():
        expected = list(specs[name].shape)
        if name not in found:
            problems.append(f"parameter {name} is missing; expected shape {expected}")
            continue
        shape, dtype = found[name]
        if shape != expected:
            problems.append(f"parameter {name} has shape {shape}; expected {expected}")
        elif dtype.name not in DTYPES:
            problems.append(f"parameter {name} is stored as {dtype.name}; supported are {', '.join(DTYPES)}")
        elif target.dtype == np.float16 and dtype != np.float16:
            narrowed.append(name)
    problems += [
        f"parameter {name} of shape {found[name][0]} is not part of this model"
        for name in found.keys() - targets.keys()
    ]
    if problems:
        raise mismatch(
            f"the weights in {directory} do not fit the model that config.json describes",
            problems,
            "Use the config.json that belongs to these weights, or convert the model again.",
        )
    return narrowed
