"""The origin of a result: versions, machine, commit, flags."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from medha_jax.machine import cores, cpu_model

PACKAGES = ("medha-jax", "jax", "jaxlib", "numpy", "grpcio", "aiohttp")
MASK = "***"
_SECRET = re.compile(r"--?([\w-]*-)?(token|key|password|secret|authorization)", re.IGNORECASE)


def stamp(flags: Sequence[str], started: datetime, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The origin of a result, without names of persons or hosts.

    Args:
        flags: of the command; values that look like secrets are masked.
        started: start of the run.
        more: further entries, such as facts about the server.
    """
    return {
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
        "flags": masked(flags),
        "commit": commit(Path(__file__).parent),
        "versions": {name: version for name in PACKAGES if (version := installed_version(name)) is not None},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": cores(),
        **(more or {}),
    }


def masked(flags: Sequence[str]) -> list[str]:
    """Flags; values of names that end in token, key, password, secret or authorization are hidden."""
    shown: list[str] = []
    hide = False
    for flag in flags:
        name, equals, _ = flag.partition("=")
        secret = _SECRET.fullmatch(name) is not None
        shown.append(MASK if hide else f"{name}={MASK}" if secret and equals else flag)
        hide = secret and not equals
    return shown


def commit(folder: Path) -> str | None:
    """The git commit of a folder, with `+changes` if tracked files differ; None if git does not track it."""
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    found = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if found is None else found + ("+changes" if changes else "")


def installed_version(name: str) -> str | None:
    """Version of a distribution, without importing it; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of git; None without git or on an error."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
