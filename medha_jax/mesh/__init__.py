"""The device mesh. Only this part divides arrays over mesh axes; `config` names the axes."""

from medha_jax.mesh.collectives import (
    embed_tokens,
    from_last_stage,
    gather_groups,
    gather_vocabulary,
    max_over_vocabulary,
    stage_index,
    stage_share,
    sum_over_tensor,
    sum_over_vocabulary,
    to_next_stage,
    vocabulary_start,
)
from medha_jax.mesh.devices import bind_cpu_threads, build_mesh, request_cpu_devices
from medha_jax.mesh.rules import (
    parameter_sharding,
    parameter_spec,
    per_group,
    plan_spec,
    pool_spec,
    register_spec,
)

__all__ = [
    "bind_cpu_threads",
    "build_mesh",
    "embed_tokens",
    "from_last_stage",
    "gather_groups",
    "gather_vocabulary",
    "max_over_vocabulary",
    "parameter_sharding",
    "parameter_spec",
    "per_group",
    "plan_spec",
    "pool_spec",
    "register_spec",
    "request_cpu_devices",
    "stage_index",
    "stage_share",
    "sum_over_tensor",
    "sum_over_vocabulary",
    "to_next_stage",
    "vocabulary_start",
]
