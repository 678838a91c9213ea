"""Logical axes of parameters and state, mapped to mesh axes in one place."""

from __future__ import annotations

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medha_jax.config import GROUP, STAGE, TENSOR

# head_dim and embed are not divided, because every device reads all of them
LOGICAL_TO_MESH: dict[str, str | tuple[str, ...] | None] = {
    "layers": STAGE,
    "heads": TENSOR,
    "kv_heads": TENSOR,
    "all_heads": TENSOR,  # of queries, keys and values, each device's together
    "ffn": TENSOR,
    "gate_up": TENSOR,  # of gate and up, each device's together
    "vocab": TENSOR,
    "head_vocab": (TENSOR, STAGE),  # of a head that is no embedding: each stage computes a part of the logits
    "head_dim": None,
    "embed": None,
}


def parameter_spec(axes: tuple[str, ...]) -> PartitionSpec:
    """Partition of a parameter with these logical axes. Raises KeyError for an axis without a rule."""
    return PartitionSpec(*(LOGICAL_TO_MESH[axis] for axis in axes))


def parameter_sharding(mesh: Mesh, axes: tuple[str, ...]) -> NamedSharding:
    """Placement of a parameter with these logical axes on `mesh`."""
    return NamedSharding(mesh, parameter_spec(axes))


def pool_spec(axes: int = 6) -> PartitionSpec:
    """Partition of the first axes of a KV pool `[layers, 2, pages, kv_heads, page, head_dim]`; groups divide pages."""
    return PartitionSpec(*(STAGE, None, GROUP, TENSOR, None, None)[:axes])


def register_spec() -> PartitionSpec:
    """Partition of the stage register `[spp, kvp, rows, embed]`."""
    return PartitionSpec(STAGE, GROUP, None, None)


def per_group() -> PartitionSpec:
    """Partition of arrays `[kvp, ...]` with one entry per group."""
    return PartitionSpec(GROUP)


def plan_spec() -> PartitionSpec:
    """Partition of the plans in flight `[spp, kvp, fields]`. A stage sees the plans of all stages for its group."""
    return PartitionSpec(None, GROUP, None)
