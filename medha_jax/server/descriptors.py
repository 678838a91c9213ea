"""Open files of the process: as many as the system allows, and enough for the limits of the server."""

from __future__ import annotations

import contextlib
import resource

from medha_jax.config import ConfigError

BESIDE = 128  # files that are no connection of a client: libraries, weights, the log, metrics


def connections_for(max_streams: int) -> int | None:
    """Raise the limit of open files as far as it goes; returns how many connections fit, None for any number.

    Raises:
        ConfigError: not each stream could have a connection of its own.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # a system may have a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft == resource.RLIM_INFINITY:
        return None
    if max_streams + BESIDE > soft:
        raise ConfigError(
            f"max_streams is {max_streams}, which needs {max_streams + BESIDE} open files; the system allows {soft}; "
            f"give --max-streams {max(1, soft - BESIDE)} or less, or raise the limit (ulimit -Hn)"
        )
    return soft - BESIDE
