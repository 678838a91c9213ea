"""GPUs that programs can be compiled for without having one: XLA's descriptions of them, as data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from medha_jax.attention import GpuTarget

_FOLDER = Path(__file__).parent / "targets"
_FIELD = re.compile(r"\b(\w+): (?:\"([^\"]*)\"|(\d+)\b)")

_NEEDED = (
    "core_count",
    "device_memory_size",
    "device_description_str",
    "driver_version",
    "runtime_version",
    "compile_time_toolkit_version",
)


class GpuTargetError(ValueError):
    """A GPU's description is not there or lacks something; or its compiler cannot be found here."""


@dataclass(frozen=True)
class GpuDescription:
    """One GPU as XLA describes it.

    Args:
        name: of the file, e.g. `h200`.
        text: text form of XLA's `GpuTargetConfigProto`. Without the versions of driver and toolkit, XLA would record
            fewer kinds of commands.
        target: what the kernels need to know.
        memory: bytes of the device.
    """

    name: str
    text: str
    target: GpuTarget
    memory: int


def gpu_names() -> tuple[str, ...]:
    """Names of the GPUs that are described."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.textproto")))


def load_gpu(name: str) -> GpuDescription:
    """The description of a GPU.

    Raises:
        GpuTargetError: there is none of this name.
    """
    if name not in gpu_names():
        raise GpuTargetError(f"no GPU named {name!r}; there are {', '.join(gpu_names())}")
    return parse_gpu(name, (_FOLDER / f"{name}.textproto").read_text(encoding="utf-8"))


def parse_gpu(name: str, text: str) -> GpuDescription:
    """Read XLA's description of a GPU.

    Raises:
        GpuTargetError: a field is missing.
    """
    fields = {found[1]: found[2] or found[3] for found in _FIELD.finditer(text)}
    capability = re.search(r"cuda_compute_capability \{ major: (\d+)(?: minor: (\d+))? \}", text)
    missing = [field for field in _NEEDED if not fields.get(field)]
    if missing or capability is None:
        raise GpuTargetError(f"the description of {name} lacks {', '.join(missing) or 'cuda_compute_capability'}")
    level = 10 * int(capability[1]) + int(capability[2] or 0)
    target = GpuTarget(fields["device_description_str"], level, int(fields["core_count"]))
    return GpuDescription(name, text, target, int(fields["device_memory_size"]))
