"""Start one process of a cluster from a configuration.

If the process numbers are configured, the stream of plans starts before JAX's own client. That client aborts the
process with a stack trace if another process is missing. The stream names the missing process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import jax

from medha_jax.config import RuntimeConfig
from medha_jax.runtime.cluster.errors import ClusterError
from medha_jax.runtime.cluster.executor import ClusterExecutor
from medha_jax.runtime.cluster.follower import Follower
from medha_jax.runtime.cluster.identity import hello
from medha_jax.runtime.cluster.leader import Leader, LeaderEvents
from medha_jax.runtime.cluster.membership import ClusterConfig, Membership, join
from medha_jax.runtime.cluster.transport import PlansLink
from medha_jax.runtime.cluster.watchdog import depart, leave
from medha_jax.runtime.cluster.wire import message_limit
from medha_jax.runtime.executor import MeshExecutor
from medha_jax.runtime.shape_compiler import Report
from medha_jax.runtime.start import open_executor
from medha_jax.specs.layout import Layout, LayoutError
from medha_jax.specs.model import Architecture
from medha_jax.specs.sizes import Sizes


def lead(
    config: RuntimeConfig,
    cluster: ClusterConfig,
    report: Report,
    events: LeaderEvents | None = None,
    opened: Callable[[Leader], None] = lambda leader: None,
) -> ClusterExecutor:
    """Start process 0: wait for the other processes and load the model on all of them.

    Args:
        config: must be the same for every process.
        report: called with each line of progress.
        events: whom to tell what is heard of the others; None ends this process if one is lost, and reports the rest.
        opened: called with the leader before anybody is waited for, so that a start can be given up.

    Raises:
        ClusterError: the other processes do not connect, or this is not process 0.
        ClusterSettingError: a file of TLS or of the secret cannot be used.
        LayoutError, CheckpointError, UnsupportedModelError: as `open_executor`.
    """
    link = _link(config, cluster)
    member = cluster.stated or _join(config, cluster, report)
    if member.process != 0:
        raise ClusterError(f"this is process {member.process}; plans are made by process 0, start a worker here")
    _warn(cluster, report)
    if events is None:
        told = "was asked to end; it does when this process is done"
        events = LeaderEvents(leaving=lambda process: report(f"process {process} {told}"), note=report)
    leader = Leader(hello(0, config), member.processes, link, events)
    opened(leader)
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


def follow(
    config: RuntimeConfig,
    cluster: ClusterConfig,
    report: Report,
    stopping: threading.Event | None = None,
    end: Callable[[str], None] = leave,
) -> str:
    """Run a follower until process 0 stops; returns the reason of process 0.

    Args:
        config: must be the same for every process.
        report: called with each line of progress.
        stopping: when it is set, process 0 is asked to let all processes finish. Before this one has joined it ends
            with exit code 0.
        end: ends this process with an error text if process 0 refuses it, is lost or fails.

    Raises:
        ClusterError: process 0 refuses this process or does not answer, or this is process 0.
        ClusterSettingError: a file of TLS or of the secret cannot be used.
        LayoutError, CheckpointError, UnsupportedModelError: as `open_executor`.
    """
    followers: list[Follower] = []
    if stopping is not None:
        threading.Thread(target=_leave_when_asked, args=(stopping, followers), daemon=True).start()
    link = _link(config, cluster)
    member = cluster.stated or _join(config, cluster, report)
    if member.process == 0:
        raise ClusterError("this is process 0, which makes the plans; a worker has another --process-id")
    _warn(cluster, report)
    follower = Follower(hello(member.process, config), link, end)
    followers.append(follower)
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


def _leave_when_asked(stopping: threading.Event, followers: list[Follower]) -> None:
    stopping.wait()
    if not followers:
        depart("stopped before process 0 let it in")
    followers[0].leave()


def _warn(cluster: ClusterConfig, report: Report) -> None:
    if cluster.exposed is not None:
        report(
            f"warning: {cluster.exposed}; jax.distributed and the collectives have no protection, so only this mesh's "
            "processes may reach its network"
        )


def _link(config: RuntimeConfig, cluster: ClusterConfig) -> PlansLink:
    if config.prompt_logprobs:  # followers would have to be told of every question
        raise LayoutError("prompt_logprobs is for a mesh in one process; this one is over several")
    arch = Architecture.from_directory(config.model)
    limit = message_limit(config, arch.vocab, Sizes.of(config, arch.context).table_width)
    return PlansLink(cluster.plans_address, limit, cluster.heartbeat, cluster.tls, cluster.secret)


def _join(config: RuntimeConfig, cluster: ClusterConfig, report: Report) -> Membership:
    member = join(cluster, Layout.of(config.mesh))
    report(
        f"process {member.process} of {member.processes}, {len(jax.local_devices())} devices of {jax.device_count()}"
    )
    return member
