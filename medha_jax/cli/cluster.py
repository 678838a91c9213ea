"""Options of a mesh over several processes, shared by `worker` and the commands of process 0."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from medha_jax.cli.exit_codes import INTERRUPTED
from medha_jax.cli.option_groups import Shown, as_flags
from medha_jax.config import setting

if TYPE_CHECKING:
    from medha_jax.runtime.cluster import ClusterConfig

SEVERAL = Shown(panel="Several processes")
DETECT = "auto"


@dataclass(frozen=True)
class ClusterOptions:
    """Which process this one is, and how the processes reach each other."""

    coordinator: str | None = setting(
        None, "jax.distributed's address in process 0; auto: detect Slurm, Kubernetes, MPI, …", metavar="HOST:PORT|auto"
    )
    processes: int | None = setting(None, "How many processes there are.")
    process_id: int | None = setting(None, "Number of this process, from 0.", metavar="I")
    plans: str | None = setting(
        None, "Where process 0 serves plans. Default: the port after the coordinator's.", metavar="HOST:PORT"
    )
    heartbeat_seconds: float = setting(
        10.0, "Give up a silent process after this time.", above=0, at_most=1e6, metavar="SECONDS"
    )
    tls_cert: Path | None = setting(None, "Certificate of this process (PEM).")
    tls_key: Path | None = setting(None, "Its key (PEM).")
    tls_ca: Path | None = setting(None, "Authority that signed the other processes' certificates.")
    plans_token_file: Path | None = setting(
        None, "A secret that all processes know. Default on loopback: one that process 0 makes.", metavar="FILE"
    )
    trusted_network: bool = setting(
        False,
        "Only this mesh's processes reach its network: what they compute with each other is unprotected.",
        switch=True,
    )

    @property
    def config(self) -> ClusterConfig | None:
        """The cluster; None for a single process.

        Raises:
            ClusterSettingError: an option is missing or out of range.
        """
        if self.coordinator is None:
            alone = ("processes", "process_id", "plans", "plans_token_file", "tls_cert", "tls_key", "tls_ca")
            named = [name for name in alone if getattr(self, name) is not None]
            named += ["trusted_network"] * self.trusted_network
            if named:
                raise typer.BadParameter(f"{as_flags(named)} given without --coordinator; give it, or none of them")
            return None

        from medha_jax.runtime.cluster import ClusterConfig, tls_files

        return ClusterConfig(
            coordinator=None if self.coordinator == DETECT else self.coordinator,
            processes=self.processes,
            process=self.process_id,
            plans=self.plans,
            heartbeat=self.heartbeat_seconds,
            tls=tls_files(self.tls_cert, self.tls_key, self.tls_ca),
            token_file=self.plans_token_file,
            trusted=self.trusted_network,
        )


def quiet_stdout() -> None:
    """Keep standard output for this command, because CPU collectives print lines to it."""
    sys.stdout.flush()
    own = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    sys.stdout = os.fdopen(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


@contextmanager
def ended_at_once() -> Iterator[None]:
    """End the process right after printing an error, because JAX would wait for the other processes at a normal exit.

    Exit codes are those of `medha_jax.cli.run`.
    """
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        from medha_jax.runtime.cluster.watchdog import leave

        sys.stdout.flush()
        leave(str(error) or type(error).__name__, 2 if isinstance(error, ValueError) else 1)
    except KeyboardInterrupt:
        sys.stdout.flush()
        os._exit(INTERRUPTED)
