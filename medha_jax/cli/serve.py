"""`medha-jax serve`: a model behind gRPC."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medha_jax.cli.cluster import SEVERAL, ClusterOptions, ended_at_once, quiet_stdout
from medha_jax.cli.interrupt import outlive_hangups
from medha_jax.cli.option_groups import Shown, takes_groups
from medha_jax.cli.runtime_options import RuntimeOptions
from medha_jax.config import ConfigError, ModelDefaults, RuntimeConfig, SchedulerConfig, setting
from medha_jax.config.yaml_file import AsTyped, read_mapping
from medha_jax.net import TlsFiles
from medha_jax.server.settings import ServerSettings

if TYPE_CHECKING:
    from medha_jax.runtime.cluster import ClusterConfig


def _config_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take the options of a YAML file as defaults; flags win.

    Raises:
        ConfigError: the file cannot be read, or names an unknown option.
    """
    if path is None:
        return None
    try:
        stated = read_mapping(path, loader=AsTyped)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    allowed = sorted(parameter.name for parameter in ctx.command.params if parameter.name not in (None, "config"))
    given = {str(name).replace("-", "_"): value for name, value in stated.items()}
    unknown = [name for name in given if name not in allowed]
    if unknown:
        names = ", ".join(name.replace("_", "-") for name in allowed)
        raise ConfigError(f"{path} has unknown options {', '.join(unknown)}; allowed are {names}")
    for name, value in given.items():
        if isinstance(value, (dict, list)):
            raise ConfigError(f"{path}: {name} must be a single value")
    ctx.default_map = given
    return path


@dataclass(frozen=True)
class TlsOptions:
    """The server's TLS."""

    tls_cert: Path | None = setting(None, "Certificate of this server (PEM).")
    tls_key: Path | None = setting(None, "Its key (PEM).")
    tls_ca: Path | None = setting(None, "Authority of clients' certificates, which they then need.")

    @property
    def files(self) -> TlsFiles | None:
        """The TLS files, None for no TLS.

        Raises:
            ConfigError: one of the pair is missing.
        """
        if self.tls_cert and self.tls_key:
            return TlsFiles(self.tls_cert, self.tls_key, self.tls_ca)
        if self.tls_cert or self.tls_key or self.tls_ca:
            raise ConfigError(
                "TLS needs a certificate and its key; give --tls-cert and --tls-key, and --tls-ca if wanted"
            )
        return None


_PLANS_TLS = {name: f"plans_{name}" for name in ("tls_cert", "tls_key", "tls_ca")}


@takes_groups
def serve(
    runtime: RuntimeOptions,
    settings: Annotated[dict[str, Any], Shown(of=ServerSettings)],
    defaults: ModelDefaults,
    tls: Annotated[TlsOptions, Shown(panel="Security")],
    scheduling: Annotated[SchedulerConfig, Shown(defaults={"max_waiting": 1024})],
    processes: Annotated[ClusterOptions, dataclasses.replace(SEVERAL, options=_PLANS_TLS)],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=_config_file, is_eager=True, help="YAML file of these options; flags win."
        ),
    ] = None,
) -> None:
    """Serve a model over gRPC until SIGTERM; running streams then have --drain-seconds to finish.

    One line on standard output says when it is ready, and where. Everything else goes to standard error.
    """
    signal.signal(signal.SIGTERM, _leave)  # until the event loop handles SIGTERM, there is nothing to finish
    outlive_hangups()
    listening = ServerSettings(**settings, tls=tls.files)
    cluster, configured = processes.config, runtime.config
    if cluster is not None:
        quiet_stdout()
    name = Path(runtime.model).name.encode("utf-8", "replace").decode()  # a path may hold bytes that are no text
    _serve(listening, configured, scheduling, cluster, name, defaults)


def _serve(
    settings: ServerSettings,
    runtime: RuntimeConfig,
    scheduling: SchedulerConfig,
    cluster: ClusterConfig | None,
    name: str,
    defaults: ModelDefaults,
) -> None:
    from medha_jax.cli.opening import model_sizes
    from medha_jax.server.assembly import assemble
    from medha_jax.server.server import serve as run
    from medha_jax.server.server_process import dying, run_server, server_log

    with contextlib.nullcontext() if cluster is None else ended_at_once(), server_log() as log:
        complete = settings.compile_all_first
        model, loader = assemble(
            runtime, scheduling, name=name, cluster=cluster, tell=log.write, complete=complete, defaults=defaults
        )
        model_sizes(runtime)  # refuses a --max-context beyond the model's
        announce, last = functools.partial(print, flush=True), functools.partial(dying, log)
        serving = run(
            settings, model, loader, announce=announce, tell=log.write, dying=last, dropped=lambda: log.dropped
        )
        run_server(serving, log)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)
