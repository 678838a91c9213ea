"""The device mesh: the only part that knows the names of its axes."""

from medha_jax.mesh.layout import Layout, build_mesh
from medha_jax.mesh.rules import (
    parameter_sharding,
    parameter_spec,
    pool_spec,
    replicated,
    sum_over_tensor,
)

__all__ = [
    "Layout",
    "build_mesh",
    "parameter_sharding",
    "parameter_spec",
    "pool_spec",
    "replicated",
    "sum_over_tensor",
]
