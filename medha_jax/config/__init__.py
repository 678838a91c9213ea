"""Every setting, as frozen data; only this part reads or writes the environment."""

from medha_jax.config.declaration import (
    ConfigError,
    Setting,
    check_settings,
    same_setting,
    setting,
    setting_of,
)
from medha_jax.config.environment import (
    claim_device_memory,
    default_compilation_cache,
    environment_without_devices,
    limit_cpu_threads,
    patient_cpu_collectives,
    run_directory,
)
from medha_jax.config.mesh_config import (
    GROUP,
    MESH_CONFIGS,
    STAGE,
    TENSOR,
    Axes,
    Buckets,
    MeshConfig,
    load_mesh,
    mesh_from,
)
from medha_jax.config.model_defaults import ModelDefaults
from medha_jax.config.runtime_config import (
    ATTENTIONS,
    BUNDLED_MODEL,
    DTYPES,
    KV_DTYPES,
    XLA_OPTIONS,
    RuntimeConfig,
)
from medha_jax.config.scheduler_config import POLICIES, PRIORITIES, SchedulerConfig

__all__ = [
    "ATTENTIONS",
    "BUNDLED_MODEL",
    "DTYPES",
    "GROUP",
    "KV_DTYPES",
    "MESH_CONFIGS",
    "POLICIES",
    "PRIORITIES",
    "STAGE",
    "TENSOR",
    "XLA_OPTIONS",
    "Axes",
    "Buckets",
    "ConfigError",
    "MeshConfig",
    "ModelDefaults",
    "RuntimeConfig",
    "SchedulerConfig",
    "Setting",
    "check_settings",
    "claim_device_memory",
    "default_compilation_cache",
    "environment_without_devices",
    "limit_cpu_threads",
    "load_mesh",
    "mesh_from",
    "patient_cpu_collectives",
    "run_directory",
    "same_setting",
    "setting",
    "setting_of",
]
