"""A mesh over several processes. Process 0 plans; the others run the same ticks in the same order."""

from medha_jax.runtime.cluster.errors import ClusterError, ClusterSettingError
from medha_jax.runtime.cluster.executor import ClusterExecutor
from medha_jax.runtime.cluster.leader import Leader, LeaderEvents
from medha_jax.runtime.cluster.membership import ClusterConfig
from medha_jax.runtime.cluster.start import follow, lead
from medha_jax.runtime.cluster.transport import tls_files
from medha_jax.runtime.cluster.watchdog import leave

__all__ = [
    "ClusterConfig",
    "ClusterError",
    "ClusterExecutor",
    "ClusterSettingError",
    "Leader",
    "LeaderEvents",
    "follow",
    "lead",
    "leave",
    "tls_files",
]
