"""Open files of the process: as many as the system allows, and enough for the limits of the server."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
from collections.abc import Callable

from medha_jax.config import ConfigError
from medha_jax.server.settings import Limits

BESIDE = 128  # files that are no connection of a client: libraries, weights, the log, metrics


def fitted(limits: Limits, tell: Callable[[str], None], ports: int = 1) -> tuple[Limits, int | None]:
    """Raise the limit of open files as far as it goes; returns limits that fit, and how many connections may be open.

    So many may be open at each of the `ports` that requests come to; None is any number. A default that does not fit is
    lowered, and `tell` takes a line about it.

    Raises:
        ConfigError: not each stream could have a connection of its own.
    """
    files = _raised()
    if files is None:
        return limits, None
    most = (files - BESIDE) // ports
    if limits.streams <= most:
        return limits, most
    needs = f"needs {ports * limits.streams + BESIDE} open files; the system allows {files}"
    if most < 1:
        raise ConfigError(f"a server {needs}, and {BESIDE + ports} are the least; raise the limit (ulimit -Hn)")
    if limits.max_streams is not None:
        raise ConfigError(
            f"max_streams is {limits.max_streams}, which {needs}; "
            f"give --max-streams {most} or less, or raise the limit (ulimit -Hn)"
        )
    tell(f"--max-streams is {most}: its default, {limits.streams}, {needs} (ulimit -Hn)")
    return dataclasses.replace(limits, max_streams=most), most


def _raised() -> int | None:
    """Raise the limit of open files as far as it goes; returns it, None for none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # a system may have a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return None if soft == resource.RLIM_INFINITY else soft
