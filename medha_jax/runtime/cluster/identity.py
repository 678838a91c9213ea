"""Whether two processes have the same version, model and configuration."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import medha_jax
from medha_jax.config import RuntimeConfig
from medha_jax.protos import plans_pb2 as pb

ALIKE = "jax", "jaxlib"  # other versions of these may compute, sample or send otherwise
SAMPLE = 2**16  # bytes; reading all of a large model's weights would take minutes


def digest(config: RuntimeConfig) -> str:
    """Hexadecimal SHA-256 of all settings except paths, and of the model.

    The model counts by `config.json` and each safetensors file's name, size, first and last 64 KiB. A converted
    directory counts by `config.json` only, because its files have random names.
    """
    common = replace(config, model=Path("model"), compilation_cache=None)
    found = hashlib.sha256(repr(common).encode())
    found.update((config.model / "config.json").read_bytes())
    for file in sorted(config.model.glob("*.safetensors")):
        size = file.stat().st_size
        found.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            found.update(stream.read(SAMPLE))
            stream.seek(max(0, size - SAMPLE))
            found.update(stream.read(SAMPLE))
    return found.hexdigest()


def versions() -> str:
    """What processes of one mesh must have in common, e.g. `0.1.0, jax 0.11.2, jaxlib 0.11.2`."""
    return ", ".join((medha_jax.__version__, *(f"{name} {version(name)}" for name in ALIKE)))


def hello(process: int, config: RuntimeConfig) -> pb.Hello:
    """The first message of a follower; the leader compares it with its own."""
    return pb.Hello(process=process, version=versions(), digest=digest(config))


def difference(own: pb.Hello, other: pb.Hello) -> str | None:
    """Why two processes cannot work together, None if they can."""
    if other.version != own.version:
        return f"it runs medha-jax {other.version}, process {own.process} runs {own.version}; install the same"
    if other.digest != own.digest:
        return (
            f"its model or configuration differs from that of process {own.process}; start every process with the "
            "same model, --mesh, --dtype, --max-context and other settings"
        )
    return None
