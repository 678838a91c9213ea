"""`medha-jax serve`: a model behind gRPC."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from medha_jax.cli.attention import (
    AttentionKind,
    AttentionOption,
    KvDtype,
    KvDtypeOption,
    XlaOptions,
    XlaOptionsOption,
)
from medha_jax.cli.cluster import (
    HEARTBEAT,
    CoordinatorOption,
    HeartbeatOption,
    PlansOption,
    ProcessesOption,
    ProcessIdOption,
    cluster_config,
    ended_at_once,
    quiet_stdout,
)
from medha_jax.cli.generate import Dtype
from medha_jax.cli.mesh import MeshOption, PageSizeOption, TokensPerGroupOption, mesh_config
from medha_jax.cli.opening import tell
from medha_jax.cli.prompt import model_directory
from medha_jax.cli.simulate import DEFAULT_POLICY, Policy
from medha_jax.config import ConfigError, RuntimeConfig, SchedulerConfig
from medha_jax.net import TlsFiles
from medha_jax.server.settings import LOG_FORMATS, Limits, ServerSettings

if TYPE_CHECKING:
    from medha_jax.runtime.cluster import ClusterConfig

_LISTEN, _LIMITS, _SECURITY = "Where to listen", "Limits", "Security"
_SCHEDULER, _PROCESSES, _MEMORY = "Scheduler", "Several processes", "Memory"
LONGEST_CONFIG = 2**20  # bytes


def _config_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take the options of a YAML file as defaults, so that flags win.

    Raises:
        ConfigError: the file cannot be read, or names an option that does not exist.
    """
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            stated = yaml.safe_load(file.read(LONGEST_CONFIG))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(stated, dict):
        raise ConfigError(f"{path} must be a mapping of options, as in port: 9320")
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


def _access_log(value: str) -> str:
    if value not in LOG_FORMATS:
        raise typer.BadParameter(f"{value!r} is no form of a log; give one of {', '.join(LOG_FORMATS)}")
    return value


def _count(help: str, panel: str = _LIMITS) -> Any:
    return typer.Option(min=1, metavar="N", help=help, rich_help_panel=panel)


def _file(help: str, panel: str = _SECURITY) -> Any:
    return typer.Option(metavar="FILE", help=help, rich_help_panel=panel)


def serve(
    model: Annotated[
        str,
        typer.Option(metavar="tiny|DIR", help="The bundled tiny model, or a Hugging Face model directory."),
    ] = "tiny",
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=_config_file, is_eager=True, help="YAML file of these options; flags win."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=_LISTEN)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.", rich_help_panel=_LISTEN)] = 9320,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Prometheus; 0 picks a free one. Default: off.", rich_help_panel=_LISTEN),
    ] = None,
    tls_cert: Annotated[Path | None, _file("Certificate of this server (PEM).")] = None,
    tls_key: Annotated[Path | None, _file("Its key (PEM).")] = None,
    tls_ca: Annotated[Path | None, _file("Authority of clients' certificates, which they then need.")] = None,
    auth_token_file: Annotated[Path | None, _file("Bearer tokens, one a line, of which a call needs one.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Other machines may be served without TLS.", rich_help_panel=_SECURITY)
    ] = False,
    policy: Annotated[Policy, typer.Option(help="Order of the prompts.", rich_help_panel=_SCHEDULER)] = DEFAULT_POLICY,
    chunk_preemption: Annotated[
        bool,
        typer.Option(
            help="Prompts take turns chunk by chunk; without, one runs to its end before the next begins.",
            rich_help_panel=_SCHEDULER,
        ),
    ] = True,
    tpot_target_ms: Annotated[
        float,
        typer.Option(min=1, help="Per output token, for requests that state none.", rich_help_panel=_SCHEDULER),
    ] = 50.0,
    prefix_cache: Annotated[
        bool, typer.Option(help="Find pages of earlier prompts again by their tokens.", rich_help_panel=_SCHEDULER)
    ] = True,
    max_output: Annotated[int | None, _count("Output tokens of a request. Default: the context.")] = None,
    max_queue: Annotated[int, _count("Requests that wait.")] = 1024,
    max_queue_tokens: Annotated[int | None, _count("Prompt tokens of all that wait. Default: any.")] = None,
    max_streams: Annotated[int, _count("Streams at once, served or waiting.")] = 2048,
    max_message_bytes: Annotated[
        int | None,
        typer.Option(min=1024, metavar="N", help="Default: from the context.", rich_help_panel=_LIMITS),
    ] = None,
    part_seconds: Annotated[
        float,
        typer.Option(min=0.1, help="To wait for the next part of a prompt.", rich_help_panel=_LIMITS),
    ] = 60.0,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="That streams may run on after SIGTERM.", rich_help_panel=_LIMITS)
    ] = 30.0,
    access_log: Annotated[
        str, typer.Option(metavar="text|json|off", callback=_access_log, help="A line a call, on standard error.")
    ] = "text",
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every tick for ui.perfetto.dev.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="auto: float32 on a CPU, else bfloat16.")] = Dtype.AUTO,
    kv_dtype: KvDtypeOption = KvDtype.AUTO,
    attention: AttentionOption = AttentionKind.AUTO,
    xla_options: XlaOptionsOption = XlaOptions.AUTO,
    mesh: MeshOption = "tp=1",
    page_size: PageSizeOption = None,
    tokens_per_group: TokensPerGroupOption = None,
    max_context: Annotated[
        int | None, _count("Prompt and output together, in tokens. Default: the model's.", _MEMORY)
    ] = None,
    slots: Annotated[int, _count("Requests that run at once.", _MEMORY)] = RuntimeConfig.slots,
    pool_tokens: Annotated[
        int | None, _count("KV tokens of each group. Default: one request of the whole context.", _MEMORY)
    ] = None,
    coordinator: CoordinatorOption = None,
    processes: ProcessesOption = None,
    process_id: ProcessIdOption = None,
    plans: PlansOption = None,
    heartbeat_seconds: HeartbeatOption = HEARTBEAT,
    plans_tls_cert: Annotated[Path | None, _file("As worker's --tls-cert.", _PROCESSES)] = None,
    plans_tls_key: Annotated[Path | None, _file("As worker's --tls-key.", _PROCESSES)] = None,
    plans_tls_ca: Annotated[Path | None, _file("As worker's --tls-ca.", _PROCESSES)] = None,
) -> None:
    """Serve a model over gRPC until SIGTERM; running streams then have --drain-seconds to finish.

    One line on standard output says when it is ready, and where. Everything else goes to standard error.
    """
    signal.signal(signal.SIGTERM, _leave)  # until the event loop takes it over, there is nothing to finish
    limits = Limits(max_output, max_streams, max_message_bytes, part_seconds)
    settings = ServerSettings(
        host=host,
        port=port,
        metrics_port=metrics_port,
        tls=_tls(tls_cert, tls_key, tls_ca),
        token_file=auth_token_file,
        insecure=insecure,
        drain_seconds=drain_seconds,
        access_log=access_log,  # type: ignore[arg-type]  # checked by its callback
        trace=trace,
        limits=limits,
    )
    cluster = cluster_config(
        coordinator,
        processes,
        process_id,
        plans,
        heartbeat_seconds,
        plans_tls_cert,
        plans_tls_key,
        plans_tls_ca,
        insecure,
    )
    directory = model_directory(model)
    runtime = RuntimeConfig(
        model=directory,
        dtype=str(dtype),
        kv_dtype=str(kv_dtype),
        attention=str(attention),
        xla_options=str(xla_options),
        max_context=max_context,
        mesh=mesh_config(mesh, page_size=page_size, tokens_per_group=tokens_per_group),
        slots=slots,
        pool_tokens=pool_tokens,
    )
    scheduling = SchedulerConfig(
        policy=str(policy),
        chunk_preemption=chunk_preemption,
        tpot_target_s=tpot_target_ms / 1000,
        max_waiting=max_queue,
        max_waiting_tokens=max_queue_tokens,
        prefix_cache=prefix_cache,
    )
    if cluster is not None:
        quiet_stdout()
    _serve(settings, runtime, scheduling, cluster, Path(model).name)


def _serve(
    settings: ServerSettings,
    runtime: RuntimeConfig,
    scheduling: SchedulerConfig,
    cluster: ClusterConfig | None,
    name: str,
) -> None:
    """Serve, and end the process."""
    import asyncio

    from medha_jax.cli.opening import model_sizes
    from medha_jax.server.assembly import assemble
    from medha_jax.server.server import serve as run

    with contextlib.nullcontext() if cluster is None else ended_at_once():
        model, loader = assemble(runtime, scheduling, name=name, cluster=cluster, tell=tell)
        model_sizes(runtime)  # refuses a --max-context beyond the model's
        asyncio.run(run(settings, model, loader, announce=lambda line: print(line, flush=True), tell=tell))
    sys.stdout.flush()
    os._exit(0)  # a load that was given up would hold the exit up, and so would JAX in a mesh of several processes


def _tls(cert: Path | None, key: Path | None, ca: Path | None) -> TlsFiles | None:
    if cert and key:
        return TlsFiles(cert, key, ca)
    if cert or key or ca:
        raise ConfigError("TLS needs a certificate and its key; give --tls-cert and --tls-key, and --tls-ca if wanted")
    return None


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)
