"""Start one process of a cluster from a configuration.

If the process numbers are configured, the stream of plans starts before JAX's own client. That client aborts the
process with a stack trace if another process is missing. The stream names the missing process.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from medha_jax.config import RuntimeConfig
from medha_jax.runtime.cluster.errors import ClusterError
from medha_jax.runtime.cluster.executor import ClusterExecutor
from medha_jax.runtime.cluster.follower import Follower
from medha_jax.runtime.cluster.identity import hello
from medha_jax.runtime.cluster.leader import Leader
from medha_jax.runtime.cluster.membership import ClusterConfig, Membership, join
from medha_jax.runtime.cluster.watchdog import leave
from medha_jax.runtime.cluster.wire import message_limit
from medha_jax.runtime.executor import MeshExecutor
from medha_jax.runtime.shape_compiler import Report
from medha_jax.runtime.start import open_executor
from medha_jax.specs.layout import Layout, LayoutError
from medha_jax.specs.model import Architecture
from medha_jax.specs.sizes import Sizes


def lead(
    config: RuntimeConfig, cluster: ClusterConfig, report: Report, end: Callable[[str], None] = leave
) -> ClusterExecutor:
    """Start process 0: wait for the other processes and load the model on all of them.

    Args:
        config: must be the same for every process.
        report: called with each line of progress.
        end: ends this process with an error text if another one is lost.

    Raises:
        ClusterError: the other processes do not connect, or this is not process 0.
        LayoutError, CheckpointError, UnsupportedModelError: as `open_executor`.
    """
    limit = _limit(config)
    member = cluster.stated or _join(config, cluster, report)
    if member.process != 0:
        raise ClusterError(f"this is process {member.process}; plans are made by process 0, start a worker here")
    own = hello(0, config)
    leader = Leader(
        own, member.processes, cluster.plans_address, limit, cluster.heartbeat, cluster.tls, cluster.insecure, end
    )
    try:
        leader.wait_joined(cluster.patience)
        if cluster.stated:
            _join(config, cluster, report)
        executor = open_executor(config, report)
        leader.wait_ready(cluster.patience)
    except Exception as error:
        leader.await_cause()
        leader.stop(f"process 0 failed: {error}", failed=True)
        raise
    report(f"{member.processes} processes are ready")
    return ClusterExecutor(executor, leader)


def follow(config: RuntimeConfig, cluster: ClusterConfig, report: Report, end: Callable[[str], None] = leave) -> str:
    """Run a follower until process 0 stops; returns the reason of process 0.

    Args:
        config: must be the same for every process.
        report: called with each line of progress.
        end: ends this process with an error text if process 0 refuses it, is lost or fails.

    Raises:
        ClusterError: process 0 refuses this process or does not answer, or this is process 0.
        LayoutError, CheckpointError, UnsupportedModelError: as `open_executor`.
    """
    limit = _limit(config)
    member = cluster.stated or _join(config, cluster, report)
    if member.process == 0:
        raise ClusterError("this is process 0, which makes the plans; a worker has another --process-id")
    own = hello(member.process, config)
    follower = Follower(own, cluster.plans_address, limit, cluster.heartbeat, cluster.tls, cluster.insecure, end)
    try:
        follower.join(cluster.patience)
    except ClusterError as error:
        end(str(error))  # end now, before JAX's own client aborts this process
        raise

    def load() -> MeshExecutor:
        if cluster.stated:
            _join(config, cluster, report)
        return open_executor(config, report)

    return follower.run(load)


def _limit(config: RuntimeConfig) -> int:
    if config.prompt_logprobs:  # followers would have to be told of every question
        raise LayoutError("prompt_logprobs is for a mesh in one process; this one is over several")
    arch = Architecture.from_directory(config.model)
    return message_limit(config, arch.vocab, Sizes.of(config, arch.context).table_width)


def _join(config: RuntimeConfig, cluster: ClusterConfig, report: Report) -> Membership:
    member = join(cluster, Layout.of(config.mesh))
    report(
        f"process {member.process} of {member.processes}, {len(jax.local_devices())} devices of {jax.device_count()}"
    )
    return member
