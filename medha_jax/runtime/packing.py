"""Turn a plan into the one int32 array that a tick takes. NumPy only."""

from __future__ import annotations

import numpy as np

from medha_jax.config import Buckets
from medha_jax.plan import Chunk, StepPlan
from medha_jax.runtime.buckets import SMALL_TILE, Bucket, PlanLayout, smallest_bucket


def split_plan(plan: StepPlan) -> tuple[list[Chunk], list[Chunk]]:
    """Chunks of one token, which run as decode rows, and longer ones; both in plan order."""
    single = [chunk for chunk in plan.chunks if chunk.length == 1]
    return single, [chunk for chunk in plan.chunks if chunk.length > 1]


def pack(plan: StepPlan, buckets: Buckets, page: int, slots: int) -> tuple[Bucket, np.ndarray]:
    """Lay out a plan for the smallest bucket that holds it.

    Args:
        plan: chunks of different slots.
        page: tokens in a page.
        slots: number of slots; it stands for "none" in padding, because writes out of range are dropped.

    Returns:
        The bucket and the flat int32 array of `PlanLayout(bucket, page)`.

    Raises:
        UnknownShapeError: no bucket is large enough.
    """
    single, chunks = split_plan(plan)
    bucket = smallest_bucket(buckets, len(single), sum(c.length for c in chunks), len(chunks))
    layout = PlanLayout(bucket, page)
    flat = np.zeros(layout.size, np.int32)
    view = {name: np.asarray(part) for name, part in layout.views(flat).items()}
    for name in ("row_slot", "sample_slot", "update_slot"):
        view[name][...] = slots
    view["decodes"][...] = len(single)

    for row, chunk in enumerate(single):
        _put_rows(view, chunk, row)
        _put_sample(view, chunk, row, row)
    row = bucket.decode
    for number, chunk in enumerate(chunks):
        _put_rows(view, chunk, row)
        _put_sample(view, chunk, bucket.decode + number, row + chunk.length - 1)
        _put_tiles(view, chunk, row, tuple(bucket.tiles))
        row += chunk.length
    updates = [(c.slot, c.first_page + i, p) for c in plan.chunks for i, p in enumerate(c.pages)]
    if updates:
        for name, values in zip(("slot", "index", "page"), zip(*updates, strict=True), strict=True):
            view[f"update_{name}"][: len(updates)] = values
    return bucket, flat


def _put_rows(view: dict[str, np.ndarray], chunk: Chunk, row: int) -> None:
    rows = slice(row, row + chunk.length)
    view["row_token"][rows] = -1 if chunk.tokens is None else chunk.tokens
    view["row_slot"][rows] = chunk.slot
    view["row_position"][rows] = np.arange(chunk.start, chunk.end)


def _put_sample(view: dict[str, np.ndarray], chunk: Chunk, sample: int, row: int) -> None:
    view["sample_row"][sample] = row
    view["sample_slot"][sample] = chunk.slot
    view["sample_keep"][sample] = chunk.last


def _put_tiles(view: dict[str, np.ndarray], chunk: Chunk, row: int, sizes: tuple[int, ...]) -> None:
    done = 0
    while done < chunk.length:
        left = chunk.length - done
        size = sizes[0] if left > sizes[0] // 2 or len(sizes) == 1 else SMALL_TILE
        at = int(view[f"tile{size}_used"])
        count = min(size, left)
        for name, value in (
            ("slot", chunk.slot),
            ("row", row + done),
            ("start", chunk.start + done),
            ("count", count),
        ):
            view[f"tile{size}_{name}"][at] = value
        view[f"tile{size}_used"][...] = at + 1
        done += count
