"""`medha-jax worker`: one process of a mesh; process 0 makes the plans."""

from __future__ import annotations

from typing import Annotated

import typer

from medha_jax.cli.cluster import SEVERAL, ClusterOptions, ended_at_once, quiet_stdout
from medha_jax.cli.interrupt import asked_to_stop, outlive_hangups
from medha_jax.cli.opening import tell
from medha_jax.cli.option_groups import takes_groups
from medha_jax.cli.runtime_options import RuntimeOptions


@takes_groups
def worker(runtime: RuntimeOptions, processes: Annotated[ClusterOptions, SEVERAL]) -> None:
    """Run one process of a mesh that spans several; process 0 is `serve` or `generate` with the same options.

    SIGTERM or Ctrl-C asks process 0 to let all processes finish; a second one ends this process at once. Ends with 0
    when process 0 is done, with 1 when any process is lost.
    """
    outlive_hangups()
    cluster = processes.config
    if cluster is None:
        raise typer.BadParameter("a worker needs --coordinator HOST:PORT, or auto")
    config, asked = runtime.config, asked_to_stop()

    from medha_jax.runtime.cluster import follow

    quiet_stdout()
    with ended_at_once():
        reason = follow(config, cluster, tell, asked)
    tell(reason)
