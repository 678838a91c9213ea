"""Tokens and pages that follow from a configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig

UNBOUNDED = 2**30  # tokens of one request on a group, if there is only one group; fits an int32
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GPU_ROWS = 8  # XLA pads the rows of every product to such a multiple, and transposes weights for a single row
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


def with_gpu_rows(config: RuntimeConfig) -> RuntimeConfig:
    """The same configuration with the rows of every shape rounded up to a multiple of `GPU_ROWS`, for GPUs."""
    return replace(config, mesh=config.mesh.in_rows_of(GPU_ROWS))


def row_parts(rows: int, overlap_rows: int | None) -> tuple[int, ...]:
    """Rows of the parts that take turns in a program's layers: all of them, or two halves from `overlap_rows` on.

    Of rows that are a multiple of `GPU_ROWS`, both halves are, e.g. 1,000 rows are 496 and 504.
    """
    if overlap_rows is None or rows < overlap_rows:
        return (rows,)
    first = rows // 2 // GPU_ROWS * GPU_ROWS
    return first, rows - first


def without_unused_slices(config: RuntimeConfig, context: int) -> RuntimeConfig:
    """A configuration without sizes of slices that no chunk needs, if the model is limited to `context` tokens."""
    mesh, sizes = config.mesh, Sizes.of(config, context)
    most = min(sizes.context, sizes.per_group)  # tokens of a chunk: it lies on one group

    def used(buckets: Buckets) -> Buckets:
        return replace(buckets, slices=buckets.slices[: 1 + sum(size < most for size in buckets.slices)])

    shared = mesh.shared_buckets and used(mesh.shared_buckets)
    return replace(config, mesh=replace(mesh, buckets=used(mesh.buckets), shared_buckets=shared))


@dataclass(frozen=True)
class Sizes:
    """Tokens and pages of a configuration on a mesh.

    Args:
        context: most tokens of one request, prompt and output; empty pools hold as many.
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
        """The sizes of a layout; without `pool_tokens`, each group's pool holds one request of `context` tokens.

        The context of smaller pools is what they hold: one of them if no request is spread over groups.
        """
        per_group = tokens_per_group(mesh, context)
        if mesh.spread_buckets is not None and pool_tokens is not None and mesh.tokens_per_group is None:
            per_group = min(per_group, pages_for(pool_tokens, mesh.page_size) * mesh.page_size)
        context = min(context, mesh.kvp * per_group)
        held = min(context, per_group)
        pages = pages_for(pool_tokens or held, mesh.page_size)
        if pages * mesh.page_size < held:
            context = held = pages * mesh.page_size
        block = max(1, BLOCK_TOKENS // mesh.page_size)
        width = pages_for(pages_for(held, mesh.page_size), block) * block
        return cls(context, per_group, pages, width)
