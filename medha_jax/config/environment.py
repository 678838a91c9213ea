"""The only module that reads or writes the environment."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

CPU_COLLECTIVE_FLAGS = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300",
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)


def default_compilation_cache() -> Path | None:
    """Directory of the persistent compilation cache: `MEDHA_JAX_CACHE`, else in the user's cache directory.

    None for a user without a home directory, as a container's may be.
    """
    if stated := os.environ.get("MEDHA_JAX_CACHE"):
        return Path(stated)
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    with suppress(RuntimeError):  # neither HOME nor an entry of the user
        base = base.expanduser()
    return base / "medha-jax" / "compiled" if base.is_absolute() else None


def run_directory() -> Path:
    """Directory for what this user's running processes tell each other: below `TMPDIR`, else /tmp.

    Not `XDG_RUNTIME_DIR`, which a login has and a service or container of the same user lacks.
    """
    return Path(tempfile.gettempdir()) / f"medha-jax-{os.getuid()}"


def limit_cpu_threads(count: int) -> None:
    """Give XLA `count` threads on CPUs, unless `NPROC` states another number; call it before JAX starts a backend."""
    os.environ.setdefault("NPROC", str(count))


def claim_device_memory() -> None:
    """Let JAX take 95 % of a GPU's memory instead of 75 %; call it before JAX starts a backend.

    `XLA_PYTHON_CLIENT_MEM_FRACTION`, if it is stated, stays as it is.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")


def patient_cpu_collectives() -> None:
    """Give devices on few cores more time to meet in a collective; call it before JAX starts a backend.

    Flags that `XLA_FLAGS` already states stay as they are.
    """
    stated = os.environ.get("XLA_FLAGS", "")
    missing = [flag for flag in CPU_COLLECTIVE_FLAGS if flag.split("=")[0] not in stated]
    os.environ["XLA_FLAGS"] = " ".join([stated, *missing]).strip()


def environment_without_devices() -> dict[str, str]:
    """The environment of a process that compiles for a GPU and takes none.

    XLA logs there why it leaves something out of a command buffer, and no program comes from a cache. Triton compiles
    its kernels there, even if it interprets them here.
    """
    notes = {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_VMODULE": "command_buffer_conversion_pass=3"}
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**kept, **notes, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
