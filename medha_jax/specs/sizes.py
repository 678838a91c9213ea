"""Tokens and pages that follow from a configuration."""

from __future__ import annotations

from dataclasses import dataclass

from medha_jax.config import MeshConfig, RuntimeConfig

UNBOUNDED = 2**30  # tokens of one request on a group, if there is only one group; fits an int32
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BLOCK_TOKENS = 256  # XLA's attention reads this many at a time; page tables are whole blocks wide


def pages_for(tokens: int, page_size: int) -> int:
    """Pages that hold `tokens` tokens, e.g. 2 pages of 64 for 65 tokens."""
    return -(-tokens // page_size)


def parts_of(tokens: int, per_group: int, page_size: int) -> tuple[int, ...]:
    """Pages of each part of a request: all parts but the last have `per_group` tokens."""
    starts = range(0, tokens, per_group)
    return tuple(pages_for(min(per_group, tokens - start), page_size) for start in starts)


def tokens_per_group(mesh: MeshConfig, context: int) -> int:
    """Tokens of one request that a group holds, if the longest request has `context` tokens."""
    if mesh.kvp == 1:
        return UNBOUNDED
    return mesh.tokens_per_group or pages_for(context, mesh.page_size) * mesh.page_size


@dataclass(frozen=True)
class Sizes:
    """Tokens and pages of a configuration on a mesh.

    Args:
        context: most tokens of one request, prompt and output.
        per_group: tokens of one request that a group holds; `UNBOUNDED` if there is only one group.
        pages: in each group's pool.
        table_width: pages of one request that fit a group's page table.
    """

    context: int
    per_group: int
    pages: int
    table_width: int

    @classmethod
    def of(cls, config: RuntimeConfig, context: int) -> Sizes:
        """The sizes of a runtime; the model itself is limited to `context` tokens."""
        return cls.on(config.mesh, min(config.max_context or context, context), config.pool_tokens)

    @classmethod
    def on(cls, mesh: MeshConfig, context: int, pool_tokens: int | None = None) -> Sizes:
        """The sizes of a layout; without `pool_tokens`, each group's pool holds one request of `context` tokens."""
        per_group = tokens_per_group(mesh, context)
        context = min(context, mesh.kvp * per_group)
        held = min(context, per_group)
        block = max(1, BLOCK_TOKENS // mesh.page_size)
        width = pages_for(pages_for(held, mesh.page_size), block) * block
        return cls(context, per_group, pages_for(pool_tokens or held, mesh.page_size), width)
