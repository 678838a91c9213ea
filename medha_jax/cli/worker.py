"""`medha-jax worker`: one process of a mesh, beside process 0 that makes the plans."""

from __future__ import annotations

from typing import Annotated

import typer

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
    InsecureOption,
    PlansOption,
    ProcessesOption,
    ProcessIdOption,
    TlsCaOption,
    TlsCertOption,
    TlsKeyOption,
    cluster_config,
    ended_at_once,
    quiet_stdout,
)
from medha_jax.cli.generate import Dtype
from medha_jax.cli.mesh import MeshOption, PageSizeOption, TokensPerGroupOption, mesh_config
from medha_jax.cli.opening import tell
from medha_jax.cli.prompt import model_directory
from medha_jax.config import RuntimeConfig


def worker(
    coordinator: CoordinatorOption,
    model: Annotated[
        str,
        typer.Option(metavar="tiny|DIR", help="The bundled tiny model, or a Hugging Face model directory."),
    ] = "tiny",
    mesh: MeshOption = "tp=1",
    page_size: PageSizeOption = None,
    tokens_per_group: TokensPerGroupOption = None,
    dtype: Annotated[Dtype, typer.Option(help="auto: float32 on a CPU, else bfloat16.")] = Dtype.AUTO,
    kv_dtype: KvDtypeOption = KvDtype.AUTO,
    attention: AttentionOption = AttentionKind.AUTO,
    xla_options: XlaOptionsOption = XlaOptions.AUTO,
    max_context: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Prompt and output together, in tokens. Default: the model's."),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, metavar="N", help="As process 0's.")] = RuntimeConfig.slots,
    pool_tokens: Annotated[int | None, typer.Option(min=1, metavar="N", help="As process 0's.")] = None,
    processes: ProcessesOption = None,
    process_id: ProcessIdOption = None,
    plans: PlansOption = None,
    heartbeat_seconds: HeartbeatOption = HEARTBEAT,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    tls_ca: TlsCaOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Run one process of a mesh that spans several; process 0 is `serve` or `generate` with the same options.

    Ends with 0 when process 0 is done, with 1 when any process is lost.
    """
    cluster = cluster_config(
        coordinator, processes, process_id, plans, heartbeat_seconds, tls_cert, tls_key, tls_ca, insecure
    )
    if cluster is None:
        raise typer.BadParameter("a worker needs --coordinator HOST:PORT, or auto")
    layout = mesh_config(mesh, page_size=page_size, tokens_per_group=tokens_per_group)
    config = RuntimeConfig(
        model=model_directory(model),
        dtype=str(dtype),
        kv_dtype=str(kv_dtype),
        attention=str(attention),
        xla_options=str(xla_options),
        max_context=max_context,
        mesh=layout,
        slots=slots,
        pool_tokens=pool_tokens,
    )

    from medha_jax.runtime.cluster import follow

    quiet_stdout()
    with ended_at_once():
        reason = follow(config, cluster, tell)
    tell(reason)
