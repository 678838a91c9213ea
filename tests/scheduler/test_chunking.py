from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from medha_jax.config import Buckets
from medha_jax.scheduler.chunking import PrefillTable, candidates, largest_within, worthwhile
from medha_jax.scheduler.time_model import FittedTimeModel, LinearTimeModel, TickWork, slice_work
from medha_jax.specs.chunk_work import chunk_attention, chunk_read
from medha_jax.specs.tick_shapes import TickShapes

BUCKETS = Buckets(decode=(4,), prefill=(16, 64, 256), chunks=4, slices=())
SHAPES = TickShapes(
    own=BUCKETS, shared=BUCKETS, groups=1, per_group=2**31, page_size=16, stages=1, slots=8, context=20_000
)


@pytest.mark.parametrize(
    ("used", "most", "expected"),
    [
        (0, 1000, [16, 64, 256]),
        (0, 100, [16, 64, 100]),
        (0, 7, [7]),
        (0, 1, [1]),  # a decode row, whatever else the tick holds
        (256, 1, [1]),
        # 40 tokens leave 24 of the bucket of 64 and 216 of that of 256
        (40, 1000, [24, 216]),
        (40, 30, [24, 30]),
        # 4 more tokens would fill the bucket of 64, but are not worth reading a context for
        (60, 1000, [196]),
        (60, 4, [4]),
        (250, 1000, []),
        (256, 1000, []),
    ],
)
def test_candidates_fill_a_bucket_or_end_the_prompt(used: int, most: int, expected: list[int]) -> None:
    assert candidates(BUCKETS, used, most) == expected


@pytest.mark.parametrize(("limit", "expected"), [(0.5, 0), (1.6, 16), (6.3, 16), (6.4, 64), (1e9, 256)])
def test_the_largest_candidate_within_the_limit(limit: float, expected: int) -> None:
    assert largest_within([16, 64, 256], lambda n: n / 10, limit) == expected


@pytest.mark.parametrize(
    ("read", "least", "limit", "expected"),
    [
        (32, 16, 1e9, 32),  # 48²/16 = 144, 64²/32 = 128, 96²/64 = 144
        (32, 16, 63.9, 16),
        (32, 64, 1e9, 64),
        (0, 16, 1e9, 16),  # half the chunk, half the tick
        (1000, 16, 1e9, 256),
        (1000, 16, 1063, 32),
        (32, 16, 0, 16),  # the least one has been chosen, whatever it takes
    ],
)
def test_a_longer_chunk_is_worth_it_until_its_rows_take_as_long_as_its_context(
    read: int, least: int, limit: float, expected: int
) -> None:
    assert worthwhile([16, 32, 64, 256], lambda length: read + length, least, limit) == expected


def alone(model: LinearTimeModel, shapes: TickShapes, target: float, prompt: int) -> tuple[list[int], float]:
    """Chunks of a lone prompt and their seconds, one after the other."""
    done, sizes, elapsed = 0, [], 0.0

    def seconds(length: int) -> float:
        rows = next(size for size in shapes.buckets(done).prefill if size >= length)
        rows += shapes.own.decode[0]
        if done >= shapes.per_group:
            rows += shapes.shared.decode[0]
        attention = chunk_attention(done, length, shapes.per_group)
        return model.seconds(TickWork(rows, attention, chunk_read(done + length, shapes.per_group), 1))

    while done < prompt:
        most = min(prompt - done, shapes.per_group - done % shapes.per_group)
        tries = candidates(shapes.buckets(done), 0, most)
        sizes.append(largest_within(tries, seconds, target) or tries[0])
        elapsed += seconds(sizes[-1])
        done += sizes[-1]
    return sizes, elapsed


SLICE_S = 0.05
MODEL = LinearTimeModel(fixed=1e-3, tokens=1e-5, attention=1e-8, context=1e-8, rows=1e-6)


def test_chunks_shrink_as_the_context_grows() -> None:
    sizes, _ = alone(MODEL, SHAPES, 0.01, 20_000)
    assert sizes[0] == 256
    assert sizes[-2] == 16  # 64 rows would see 64 x 20,000 tokens: 12.8 ms
    assert sorted(sizes[:-1], reverse=True) == sizes[:-1]


@pytest.mark.parametrize("per_group", [2**31, 4096])
@pytest.mark.parametrize("target", [0.004, 0.01, 1.0])
def test_the_table_is_the_sum_of_the_chunks_of_a_lone_prompt(per_group: int, target: float) -> None:
    shared = Buckets(decode=(2,), prefill=(16, 64), chunks=2, slices=())
    shapes = dataclasses.replace(SHAPES, shared=shared, groups=1 if per_group > 10**6 else 5, per_group=per_group)
    table = PrefillTable(MODEL, shapes, target, SLICE_S)
    for prompt in (20_000, 16_384, 5_000, 256):
        _, elapsed = alone(MODEL, shapes, target, prompt)
        assert table.between(0, prompt) == pytest.approx(elapsed, rel=0.02)
    np.testing.assert_allclose(
        table.elapsed(np.array([0.0, 256.0, 20_000.0])),
        [0, table.between(0, 256), table.between(0, 20_000)],
    )
    assert table.between(0, 5_000) + table.between(5_000, 20_000) == pytest.approx(table.between(0, 20_000))


def test_a_table_of_ten_million_tokens_is_built_in_one_pass() -> None:
    shapes = dataclasses.replace(SHAPES, context=10_000_000)
    started = time.perf_counter()
    table = PrefillTable(MODEL, shapes, 0.01, SLICE_S)
    assert time.perf_counter() - started < 2
    # the quadratic term rules: 1e-8 * n^2 / 2 is 500,000 s
    assert table.between(0, 10_000_000) > 1e-8 * 1e14 / 2


def test_a_table_knows_when_its_model_has_changed() -> None:
    model = FittedTimeModel({}, MODEL)
    table = PrefillTable(model, SHAPES, 0.01, SLICE_S)
    assert not table.stale()
    for _ in range(40):
        work = TickWork(20, 1e4, 1e3, 1)
        model.observe(work, 2 * MODEL.seconds(work))
    assert table.stale()


@pytest.mark.parametrize("slice_s", [10.0, 0.05, 0.001])
def test_where_slices_are_compiled_a_prompt_takes_what_its_cheaper_lane_takes(slice_s: float) -> None:
    """Behind a million tokens a tick of 20 ms holds few tokens, and a chunk of slices holds many."""
    model = LinearTimeModel(fixed=4e-3, tokens=1.5e-5, attention=2.8e-10, context=5.8e-9).per_layer(16, 1e-3)
    sizes = Buckets(decode=(1,), prefill=(64, 256, 1024), slices=(2048,))
    shapes = TickShapes(sizes, sizes, 1, 2**30, 64, 2, 8, 2**20, (1, 4, 16))
    ticks = dataclasses.replace(shapes, own=dataclasses.replace(sizes, slices=()))
    sliced, ticked = (PrefillTable(model, one, 0.02, slice_s) for one in (shapes, ticks))
    alone = 0.0
    for at in range(0, 2**20, 2048):
        slices = [model.slices.seconds(slice_work(n, 2048, 2048 * (at + 1024.5), at + 2048)) for n in (1, 4, 16)]
        count, seconds = max((n, s) for n, s in zip((1, 4, 16), slices, strict=True) if n == 1 or s <= slice_s)
        alone += seconds * 16 / count
    assert sliced.between(0, 2**20) == pytest.approx(alone, rel=0.005)
    assert sliced.between(0, 2**20) < 0.8 * ticked.between(0, 2**20)
    assert not sliced.stale()
