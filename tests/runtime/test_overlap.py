"""Halves of the rows that take turns in the layers: every token and logit is that of one device, whose rows are whole.

In ticks and slices, over tp with the other axes. The compiled layouts have odd numbers of rows, and few, whose hidden
states are columns on CPUs, and many, whose are rows.
"""

from __future__ import annotations

import functools

import pytest

from medha_jax.config import Buckets
from medha_jax.inspection.traced import written_collectives
from medha_jax.models.form import FEW_ROWS_BY_KERNEL
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.shapes import Shape, rows_of_shape
from tests.runtime import sliced
from tests.small import CONFIG, small_executor

MODEL = {"num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 250, "intermediate_size": 64}
OVERLAP_ROWS = 24


def buckets(decode: int, prefill: int, slices: int) -> Buckets:
    return Buckets(decode=(decode,), prefill=(prefill,), slices=(slices,), chunks=3)


@functools.cache
def expected() -> list[sliced.Request]:
    """What one device gives, each prompt in one tick."""
    one = small_executor(MODEL, pool_tokens=6144, buckets=Buckets(decode=(8,), prefill=(640,), chunks=1, slices=()))
    return [sliced.alone(one, request) for request in sliced.mixed(one, MODEL["vocab_size"])]


def summed_rows(executor: MeshExecutor, shape: Shape) -> dict[int, int]:
    """How many sums over tp all layers of a program have, by their rows."""
    found: dict[int, int] = {}
    for one in written_collectives(executor.programs.trace(shape).jaxpr.jaxpr):
        if one.kind == "all-reduce" and one.axes == ("tp",) and one.depth:
            (rows,) = set(one.dims) - {CONFIG["hidden_size"]}
            found[rows] = found.get(rows, 0) + 1
    return found


@pytest.mark.parametrize(
    ("axes", "own", "shared"),
    [
        ((2, 1, 1), buckets(5, 35, 27), None),
        ((2, 1, 1), buckets(3, FEW_ROWS_BY_KERNEL + 40, FEW_ROWS_BY_KERNEL + 7), None),
        ((2, 2, 1), buckets(3, 33, 31), None),
        ((2, 1, 2), buckets(3, 28, 40), buckets(4, 20, 20)),
        ((2, 2, 2), buckets(3, 40, 26), buckets(2, 20, 24)),
    ],
    ids=["few rows", "many rows", "stages", "groups", "stages and groups"],
)
def test_halves_that_take_turns_give_what_one_device_gives(
    axes: tuple[int, int, int], own: Buckets, shared: Buckets | None
) -> None:
    tp, spp, kvp = axes
    executor = small_executor(
        MODEL,
        tp=tp,
        spp=spp,
        kvp=kvp,
        tokens_per_group=None if kvp == 1 else 320,
        buckets=own,
        shared_buckets=shared,
        overlap_rows=OVERLAP_ROWS,
    )
    for shape in (*executor.programs.buckets, *executor.programs.slices):
        rows = rows_of_shape(shape).rows
        first = rows // 16 * 8
        halves = {rows: 2} if rows < OVERLAP_ROWS else {first: 4} if 2 * first == rows else {first: 2, rows - first: 2}
        assert summed_rows(executor, shape) == halves, "decodes alone stay whole"
    for got, wanted in zip(sliced.serve_mixed(executor, MODEL["vocab_size"], seed=tp), expected(), strict=True):
        sliced.agree(got, wanted)
