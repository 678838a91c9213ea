"""The processes of a cluster. Starts `jax.distributed` from given addresses or from the detected launcher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from medha_jax.mesh import request_cpu_devices
from medha_jax.net import TlsFiles, is_loopback, join_address
from medha_jax.runtime.cluster.errors import ClusterError, ClusterSettingError
from medha_jax.runtime.cluster.relay import Relay
from medha_jax.runtime.cluster.secret import MeshSecret
from medha_jax.runtime.cluster.transport import host_and_port
from medha_jax.specs.layout import Layout


@dataclass(frozen=True)
class Membership:
    """This process's place in the cluster."""

    process: int
    processes: int


@dataclass(frozen=True)
class ClusterConfig:
    """How the processes of one mesh find each other.

    Args:
        coordinator: HOST:PORT of `jax.distributed` in process 0, or None to detect it (Slurm, Kubernetes, MPI, ...).
            It is unprotected. With a loopback host it listens on loopback only, else on every interface.
        processes: their number; None only with detection.
        process: number of this one; None only with detection.
        plans: HOST:PORT where process 0 serves plans; None for the port after the coordinator's.
        heartbeat: seconds of silence after which a process counts as lost.
        patience: seconds that processes wait for each other at start-up.
        tls: of the plans, on both sides.
        token_file: holds a secret that every process must know; None on loopback for one that process 0 makes.
        trusted: only this mesh's processes reach its network. Coordinator and collectives have no protection.

    Raises:
        ClusterSettingError: a setting is missing or out of range.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    plans: str | None = None
    heartbeat: float = 10.0
    patience: float = 300.0
    tls: TlsFiles | None = None
    token_file: Path | None = None
    trusted: bool = False

    def __post_init__(self) -> None:
        for name in ("heartbeat", "patience"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ClusterSettingError(f"{name} is {value} s; it must be more than 0")
        if self.coordinator is not None:
            host_and_port(self.coordinator, "--coordinator")
            if self.processes is None or self.process is None:
                raise ClusterSettingError("with --coordinator, --processes and --process-id must be given, too")
        elif self.plans is None:
            raise ClusterSettingError("give --plans HOST:PORT of process 0 where --coordinator is detected")
        if self.processes is not None and self.processes < 2:
            raise ClusterSettingError(f"--processes is {self.processes}; it must be at least 2")
        if self.processes and self.process is not None and not 0 <= self.process < self.processes:
            raise ClusterSettingError(f"--process-id is {self.process}; allowed are 0 to {self.processes - 1}")
        self._check_protection()

    @property
    def stated(self) -> Membership | None:
        """This process's place if it is configured; None if JAX detects it."""
        if self.coordinator is None or self.process is None or self.processes is None:
            return None
        return Membership(self.process, self.processes)

    @property
    def plans_address(self) -> str:
        """Where process 0 serves plans, e.g. host:8477 for coordinator host:8476."""
        if self.plans is not None:
            host_and_port(self.plans, "--plans")
            return self.plans
        host, port = host_and_port(self.coordinator or "", "--coordinator")
        return join_address(host, port + 1)

    @property
    def secret(self) -> MeshSecret:
        """What every process must know, beside having a certificate if the plans have TLS."""
        host, port = host_and_port(self.plans_address, "--plans")
        if self.token_file is not None or not is_loopback(host):
            return MeshSecret(self.token_file)
        return MeshSecret.of_port(port)

    @property
    def exposed(self) -> str | None:
        """What is not on loopback, in words; None if everything is stated to be there."""
        if self.coordinator is None:
            return "a coordinator that is detected listens on every interface"
        addresses = (self.coordinator, self.plans_address)
        return next((f"{each} is not on loopback" for each in addresses if not _on_loopback(each)), None)

    def _check_protection(self) -> None:
        exposed = self.exposed
        if exposed is not None and not self.trusted:
            raise ClusterSettingError(
                f"{exposed}, and jax.distributed and the collectives have no protection: who reaches them can read "
                "what is computed, change it, and end every process. Give --trusted-network if only this mesh's "
                "processes reach its network, or loopback addresses"
            )
        if self.tls is None and self.token_file is None and not _on_loopback(self.plans_address):
            raise ClusterSettingError(
                f"anybody could send or take plans at {self.plans_address}; give --plans-token-file, or a certificate, "
                "its key and an authority for TLS on both sides"
            )


def _on_loopback(address: str) -> bool:
    return is_loopback(host_and_port(address, "the address")[0])


def join(cluster: ClusterConfig, layout: Layout) -> Membership:
    """Join the cluster; returns when every process has joined. Call it before anything else uses JAX.

    On CPUs each process makes its equal share of the layout's devices. If the coordinator is detected, JAX's own
    setting `JAX_NUM_CPU_DEVICES` applies instead.

    Raises:
        ClusterError: the other processes are unreachable, or the mesh needs more devices than they have.
        ClusterSettingError: the devices cannot be shared equally.
    """
    timeouts = dict(
        initialization_timeout=math.ceil(cluster.patience),
        # The stream of plans notices a lost process first; this is the fallback.
        heartbeat_timeout_seconds=max(100, math.ceil(10 * cluster.heartbeat)),
        shutdown_timeout_seconds=max(5, math.ceil(cluster.heartbeat)),
    )
    jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM, and do nothing
    try:
        if cluster.coordinator is None:
            detected: dict[str, Any] = dict(num_processes=cluster.processes, process_id=cluster.process, **timeouts)
            jax.distributed.initialize(**detected)
        else:
            _share_cpu_devices(layout, cluster.processes or 0)
            _initialize(cluster, cluster.coordinator, timeouts)
        devices = jax.devices()  # this fixes their number
    except (RuntimeError, ValueError) as error:
        raise ClusterError(
            f"cannot form the cluster: {str(error).splitlines()[0]}; give --coordinator HOST:PORT, --processes N and "
            "--process-id I, and start every process"
        ) from None
    member = Membership(jax.process_index(), jax.process_count())
    if len(devices) < layout.devices or len({d.process_index for d in devices[: layout.devices]}) < member.processes:
        raise ClusterError(
            f"{layout} needs {layout.devices} devices with a part of them on each of {member.processes} processes; "
            f"there are {len(devices)} devices. Give a --mesh of that many, or other --processes"
        )
    return member


def _share_cpu_devices(layout: Layout, processes: int) -> None:
    if layout.devices % processes:
        raise ClusterSettingError(
            f"{layout} has {layout.devices} devices, which {processes} processes cannot share equally; give "
            "--processes that divide them"
        )
    request_cpu_devices(layout.devices // processes)


def _initialize(cluster: ClusterConfig, coordinator: str, timeouts: Mapping[str, Any]) -> None:
    host, port = host_and_port(coordinator, "--coordinator")
    address, bind = coordinator, coordinator if is_loopback(host) else None
    if cluster.process:
        address = Relay(host, port).address
    jax.distributed.initialize(
        address,
        cluster.processes,
        cluster.process,
        cluster_detection_method="deactivate",
        coordinator_bind_address=bind,
        **timeouts,
    )
