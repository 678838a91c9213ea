"""Whether two processes have the same version, model and configuration, and what differs if they do not."""

from __future__ import annotations

import dataclasses
import hashlib
from importlib.metadata import PackageNotFoundError, version

import medha_jax
from medha_jax.checkpoints import fingerprint
from medha_jax.config import MeshConfig, RuntimeConfig
from medha_jax.protos import plans_pb2 as pb

# Other versions of these may compute, sample or send otherwise. Python's is not among them: nothing depends on it.
ALIKE = "jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt", "triton"
OWN = "model", "compilation_cache"  # settings that are paths, which each process has of its own
NAMED = 3  # differences that a sentence names
LONGEST = 60  # characters of a value that a sentence shows


def parts(config: RuntimeConfig) -> dict[str, str]:
    """Every setting except paths, and what tells the model's weights from others, by name."""
    settings = {name: getattr(config, name) for name in _fields(config) if name not in (*OWN, "mesh")}
    settings |= {f"mesh.{name}": getattr(config.mesh, name) for name in _fields(config.mesh)}
    return {name: repr(value) for name, value in settings.items()} | fingerprint(config.model)


def versions() -> str:
    """What processes of one mesh must have in common, e.g. `0.1.0, jax 0.11.2, jaxlib 0.11.2`."""
    return ", ".join([medha_jax.__version__, *(f"{name} {found}" for name in ALIKE if (found := _version(name)))])


def hello(process: int, config: RuntimeConfig) -> pb.Hello:
    """The first message of a follower, without its proof; the leader compares it with its own."""
    found = parts(config)
    digest = hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()
    return pb.Hello(process=process, version=versions(), digest=digest, parts=found)


def difference(own: pb.Hello, other: pb.Hello) -> str | None:
    """Why two processes cannot work together, None if they can."""
    if other.version != own.version:
        return f"it runs medha-jax {other.version}, process {own.process} runs {own.version}; install the same"
    if other.digest == own.digest:
        return None
    names = sorted({*own.parts, *other.parts})
    told = [_told(name, own, other) for name in names if own.parts.get(name) != other.parts.get(name)]
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return (
        f"its model or configuration differs from that of process {own.process}{': ' if told else ''}"
        f"{', '.join(told[:NAMED])}{more}; start every process with the same settings and the same model, of which a "
        "converted directory must be a copy"
    )


def _told(name: str, own: pb.Hello, other: pb.Hello) -> str:
    theirs, ours = (side.parts.get(name, "none") for side in (other, own))
    shown = f" ({theirs}; process {own.process} has {ours})" if max(len(theirs), len(ours)) <= LONGEST else ""
    return f"{name}{shown}"


def _fields(settings: RuntimeConfig | MeshConfig) -> list[str]:
    return [field.name for field in dataclasses.fields(settings)]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
