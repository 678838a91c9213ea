"""From a configuration to one process's part of a cluster.

Where the processes know their numbers, the stream of plans comes first and JAX's own client after it: that client
aborts a process, with a stack trace, where a partner is missing or gone; the stream says who it is.
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
from medha_jax.runtime.executor import MeshExecutor, Report
from medha_jax.runtime.start import open_executor
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture
from medha_jax.specs.sizes import Sizes


def lead(
    config: RuntimeConfig, cluster: ClusterConfig, report: Report, end: Callable[[str], None] = leave
) -> ClusterExecutor:
    """Start process 0: wait for the others, load the model everywhere, be ready for plans.

    Args:
        config: what to build; every process must be given the same.
        cluster: how to find the others.
        report: told what is done, a line at a time.
        end: ends this process with a text if another one is lost.

    Raises:
        ClusterError: the others do not come, or this is not process 0.
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
    """Run another process than 0 until process 0 stops.

    Args:
        config: what to build; every process must be given the same.
        cluster: how to find the others.
        report: told what is done, a line at a time.
        end: ends this process with a text if process 0 refuses it, is lost or fails.

    Returns:
        Why process 0 stopped.

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
        end(str(error))  # at once: JAX's own client aborts a process whose partner is gone before it has ended
        raise

    def load() -> MeshExecutor:
        if cluster.stated:
            _join(config, cluster, report)
        return open_executor(config, report)

    return follower.run(load)


def _limit(config: RuntimeConfig) -> int:
    arch = Architecture.from_directory(config.model)
    return message_limit(config, arch.vocab, Sizes.of(config, arch.context).table_width)


def _join(config: RuntimeConfig, cluster: ClusterConfig, report: Report) -> Membership:
    member = join(cluster, Layout.of(config.mesh))
    report(
        f"process {member.process} of {member.processes}, {len(jax.local_devices())} devices of {jax.device_count()}"
    )
    return member
