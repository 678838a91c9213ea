"""Collectives of a mesh, inside `shard_map`. An axis with one device costs nothing."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from medha_jax.config import GROUP, STAGE, TENSOR
from medha_jax.specs.layout import Layout


def sum_over_tensor(x: Array) -> Array:
    """Add up partial results of the tensor axis. XLA would keep a sum over one device as a copy, so it is skipped."""
    return x if lax.axis_size(TENSOR) == 1 else lax.psum(x, TENSOR)


def stage_index() -> Array:
    """This device's pipeline stage."""
    return lax.axis_index(STAGE)


def to_next_stage(x: Array, layout: Layout) -> Array:
    """The previous stage's `x`; stage 0 receives the last stage's.

    A full ring, because a partial permutation compiles slower and deadlocks more easily.
    """
    if layout.spp == 1:
        return x
    previous: Array = lax.ppermute(x, STAGE, [(stage, (stage + 1) % layout.spp) for stage in range(layout.spp)])
    return previous


def from_last_stage(x: Array, layout: Layout) -> Array:
    """The last stage's `x`, on every stage."""
    if layout.spp == 1:
        return x
    last: Array = lax.psum(jnp.where(stage_index() == layout.spp - 1, x, 0), STAGE)
    return last


def gather_groups(x: Array, layout: Layout) -> Array:
    """Every group's `x` `[kvp, ...]`, in group order."""
    return x[None] if layout.kvp == 1 else lax.all_gather(x, GROUP)


def embed_tokens(table: Array, tokens: Array, layout: Layout) -> Array:
    """Embedding rows of `tokens`, from a table whose vocabulary is divided over the tensor axis."""
    if layout.tp == 1:
        return table[tokens]
    local = tokens - lax.axis_index(TENSOR) * table.shape[0]
    mine = (local >= 0) & (local < table.shape[0])
    rows = table[jnp.clip(local, 0, table.shape[0] - 1)]
    return sum_over_tensor(jnp.where(mine[:, None], rows, 0))


def stage_share(head: Array, layout: Layout) -> Array:
    """This stage's part of the vocabulary rows on its tensor position."""
    if layout.spp == 1:
        return head
    part = head.shape[0] // layout.spp
    return lax.dynamic_slice_in_dim(head, stage_index() * part, part)


def vocabulary_start(part: int, layout: Layout) -> Array | int:
    """First token id of this device's share of the vocabulary, where each share has `part` entries."""
    if layout.tp * layout.spp == 1:
        return 0
    return (lax.axis_index(TENSOR) * layout.spp + stage_index()) * part


def sum_over_vocabulary(x: Array, layout: Layout) -> Array:
    """Add up what each share of the vocabulary gives."""
    if layout.tp * layout.spp == 1:
        return x
    total: Array = lax.psum(x, (STAGE, TENSOR))
    return total


def max_over_vocabulary(x: Array, layout: Layout) -> Array:
    """The largest of what each share of the vocabulary gives."""
    if layout.tp * layout.spp == 1:
        return x
    largest: Array = lax.pmax(x, (STAGE, TENSOR))
    return largest


def gather_vocabulary(logits: Array, layout: Layout) -> Array:
    """Complete rows of logits, from the parts on all tensor positions and stages, in order of their token ids."""
    if layout.spp > 1:
        logits = lax.all_gather(logits, STAGE, axis=1, tiled=True)
    if layout.tp > 1:
        logits = lax.all_gather(logits, TENSOR, axis=1, tiled=True)
    return logits
