"""The options of a mesh over several processes, which `worker` and the commands of process 0 have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medha_jax.cli.interrupt import INTERRUPTED

if TYPE_CHECKING:
    from medha_jax.runtime.cluster import ClusterConfig

PANEL = "Several processes"
HEARTBEAT = 10.0  # seconds
DETECT = "auto"


def _option(help: str, metavar: str) -> typer.models.OptionInfo:
    return typer.Option(help=help, metavar=metavar, rich_help_panel=PANEL)


CoordinatorOption = Annotated[
    str | None,
    _option("jax.distributed's address in process 0; auto: detect Slurm, Kubernetes, MPI, …", "HOST:PORT|auto"),
]
ProcessesOption = Annotated[int | None, _option("How many processes there are.", "N")]
ProcessIdOption = Annotated[int | None, _option("Number of this process, from 0.", "I")]
PlansOption = Annotated[
    str | None, _option("Where process 0 serves plans. Default: the port after the coordinator's.", "HOST:PORT")
]
HeartbeatOption = Annotated[float, _option("Give up a silent process after this time.", "SECONDS")]
TlsCertOption = Annotated[Path | None, _option("Certificate of this process (PEM).", "FILE")]
TlsKeyOption = Annotated[Path | None, _option("Its key (PEM).", "FILE")]
TlsCaOption = Annotated[Path | None, _option("Authority that signed the other processes' certificates.", "FILE")]
InsecureOption = Annotated[
    bool,
    typer.Option("--insecure", help="Plans may cross a network without TLS.", rich_help_panel=PANEL),
]


def cluster_config(
    coordinator: str | None,
    processes: int | None,
    process_id: int | None,
    plans: str | None,
    heartbeat_seconds: float,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_ca: Path | None,
    insecure: bool,
) -> ClusterConfig | None:
    """The cluster that the options describe; None if they describe a single process.

    Raises:
        ClusterSettingError: an option is missing or out of range.
    """
    if coordinator is None:
        given = dict(processes=processes, process_id=process_id, plans=plans, tls_cert=tls_cert, tls_key=tls_key)
        named = [
            f"--{name.replace('_', '-')}" for name, value in {**given, "tls_ca": tls_ca}.items() if value is not None
        ]
        if named:
            raise typer.BadParameter(f"{', '.join(named)} given without --coordinator; give it, or none of them")
        return None

    from medha_jax.runtime.cluster import ClusterConfig, tls_files

    return ClusterConfig(
        coordinator=None if coordinator == DETECT else coordinator,
        processes=processes,
        process=process_id,
        plans=plans,
        heartbeat=heartbeat_seconds,
        tls=tls_files(tls_cert, tls_key, tls_ca),
        insecure=insecure,
    )


def quiet_stdout() -> None:
    """Keep standard output for this command: CPU collectives print their own lines to it."""
    sys.stdout.flush()
    own = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    sys.stdout = os.fdopen(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


@contextmanager
def ended_at_once() -> Iterator[None]:
    """End the process right after an error was printed: at a normal exit JAX would wait for the other processes.

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
