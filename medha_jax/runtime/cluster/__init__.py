"""A mesh over several processes. Process 0 plans; the others run the same ticks in the same order."""

from medha_jax.runtime.cluster.errors import ClusterError, ClusterSettingError
from medha_jax.runtime.cluster.executor import ClusterExecutor
from medha_jax.runtime.cluster.membership import ClusterConfig
from medha_jax.runtime.cluster.start import follow, lead
from medha_jax.runtime.cluster.transport import tls_files

__all__ = [
    "ClusterConfig",
    "ClusterError",
    "ClusterExecutor",
    "ClusterSettingError",
    "follow",
    "lead",
    "tls_files",
]
