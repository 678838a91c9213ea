"""What the ticks of a 2x2x2 layout send, keep and compute, read from their programs."""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.inspection import corners, inspect_layout
from medha_jax.specs.layout import LayoutError
from medha_jax.specs.model import Architecture
from tests.small import CONFIG

LAYERS, PER_STAGE, HEADS, WIDTH, VOCAB = 4, 2, 4, 64, 256
ARCH = Architecture.from_config({**CONFIG, "num_hidden_layers": LAYERS})
BUCKETS = Buckets(decode=(4,), prefill=(16,), chunks=2, mixed_only=True, slices=())
PRIVATE, SHARED = "4+16", "4+16/4+16"
SAMPLED = {PRIVATE: 4 + 2, SHARED: 2 * (4 + 2)}
ROWS = {PRIVATE: 20, SHARED: 40}


def inspected(context=2048, dtype="float32", choose=tuple, **settings):
    assert jax.device_count() >= 8
    mesh = MeshConfig(**{**dict(tp=2, spp=2, kvp=2, page_size=16, buckets=BUCKETS, shared_buckets=BUCKETS), **settings})
    config = RuntimeConfig(mesh=mesh, slots=4, compilation_cache=None)
    return inspect_layout(config, dataclasses.replace(ARCH, context=context), jnp.dtype(dtype), choose=choose)


@pytest.fixture(scope="module")
def report():
    return inspected()


@pytest.fixture(scope="module")
def ticks(report):
    return {bucket.bucket: bucket for bucket in report.buckets}


def along(bucket, axis):
    """`(kind, bytes of one execution, executions)` of the collectives along an axis, whatever shape the bytes have."""
    found = [one for one in bucket.collectives if one.axis == axis]
    assert not any(one.conditional for one in found)
    times = Counter()
    for one in found:
        times[one.kind, one.nbytes] += one.count
    return sorted((kind, size, count) for (kind, size), count in times.items())


def test_every_collective_is_counted_and_has_an_axis(ticks):
    assert set(ticks) == {PRIVATE, SHARED}
    for bucket in ticks.values():
        assert bucket.uncounted == 0
        assert set(bucket.bytes_by_axis) <= {"tp", "spp", "kvp"}


def test_groups_exchange_shared_rows_only(ticks):
    assert "kvp" not in ticks[PRIVATE].bytes_by_axis
    # each of two groups gives output and fp32 log-sum-exp of its heads; a gather's result has both
    rows, heads, groups = 4 + 16, HEADS // 2, 2
    one = groups * rows * heads * (16 * 4 + 4)
    assert along(ticks[SHARED], "kvp") == [("all-gather", one, PER_STAGE)]
    assert ticks[SHARED].bytes_by_axis["kvp"] == PER_STAGE * one


@pytest.mark.parametrize("bucket", [PRIVATE, SHARED])
def test_stages_hand_on_the_register_once(ticks, bucket):
    sampled = SAMPLED[bucket]
    assert along(ticks[bucket], "spp") == [
        ("all-gather", sampled * VOCAB // 2 * 4, 1),
        ("all-reduce", sampled * WIDTH * 4, 1),
        ("collective-permute", ROWS[bucket] * WIDTH * 4, 1),
    ]


@pytest.mark.parametrize("bucket", [PRIVATE, SHARED])
def test_tensor_devices_add_up_twice_a_layer_and_once_for_the_embedding(ticks, bucket):
    assert along(ticks[bucket], "tp") == [
        ("all-gather", SAMPLED[bucket] * VOCAB * 4, 1),
        ("all-reduce", ROWS[bucket] * WIDTH * 4, 2 * PER_STAGE + 1),
    ]


@pytest.fixture(scope="module")
def slices():
    """The slices of own rows, of shared rows, and of both."""
    sized = dataclasses.replace(BUCKETS, slices=(32,))
    found = inspected(buckets=sized, shared_buckets=sized, choose=lambda shapes: shapes[-3:])
    assert found.held_bytes == 64 * WIDTH * 4
    return {one.bucket: one for one in found.buckets if one.slice_layers is not None}


@pytest.mark.parametrize(("bucket", "rows", "shared"), [("0+32", 32, 0), ("0+0/0+32", 32, 32), ("0+32/0+32", 64, 32)])
def test_a_slice_of_one_layer_sends_what_a_layer_does_and_hands_on_its_rows(slices, bucket, rows, shared):
    one = slices[bucket]
    assert (one.slice_layers, one.rows, one.shared_rows, one.uncounted) == (1, rows, shared, 0)
    assert (one.pool_copies, one.pool_conversions) == (0, 0)
    hidden = rows * WIDTH * 4
    # no head, no sample: after attention and MLP, and the embedding, which every slice computes
    assert along(one, "tp") == [("all-reduce", hidden, 3)]
    assert along(one, "spp") == [("collective-permute", hidden, 1)]
    assert along(one, "kvp") == ([("all-gather", 2 * shared * HEADS // 2 * (16 * 4 + 4), 1)] if shared else [])
    layer = (WIDTH * (2 * HEADS + 2 * 2) * 16 + 3 * WIDTH * 96) // 2
    assert one.matmul_flops == 2 * rows * layer


def test_no_program_copies_the_pool(ticks):
    assert [(bucket.pool_copies, bucket.pool_conversions) for bucket in ticks.values()] == [(0, 0)] * 2


def test_traffic_does_not_grow_with_the_context(report, ticks):
    longer = inspected(context=204800, choose=lambda buckets: buckets[-1:])
    (bucket,) = longer.buckets
    assert longer.context == 100 * report.context and longer.pool_bytes == 100 * report.pool_bytes
    assert bucket.bytes_by_axis == ticks[SHARED].bytes_by_axis
    assert bucket.collectives == ticks[SHARED].collectives
    assert bucket.pool_copies == 0


def test_sizes_are_those_of_one_device(report):
    assert dict(report.axes) == {"spp": 2, "kvp": 2, "tp": 2}
    # keys and values, layers of a stage, one of two KV heads
    assert report.kv_bytes_per_token == 2 * PER_STAGE * 1 * 16 * 4
    assert report.model_kv_bytes_per_token == 2 * LAYERS * 2 * 16 * 4
    assert report.pool_bytes == report.pool_tokens * report.kv_bytes_per_token == 2048 * report.kv_bytes_per_token
    assert report.register_bytes == 40 * WIDTH * 4
    # 128 pages, a multiple of those in an attention block
    assert report.table_bytes == 4 * 128 * 4
    # of each slot: last token, 6 floats, settings and end tokens, counts of the vocabulary
    assert report.sampler_bytes > 4 * (4 + 6 * 4 + VOCAB * 5)
    parts = report.weight_bytes, report.pool_bytes, report.register_bytes, report.table_bytes, report.sampler_bytes
    assert report.total_bytes == sum(parts) + report.held_bytes
    assert (report.usable_bytes, report.longest_context) == (None, None)


def test_matrix_products_are_counted_from_the_sizes(report, ticks):
    attention = WIDTH * (2 * HEADS + 2 * 2) * 16
    layer = (attention + 3 * WIDTH * 96) // 2
    head = VOCAB // 4 * WIDTH
    assert ticks[PRIVATE].matmul_flops == 2 * (20 * PER_STAGE * layer + SAMPLED[PRIVATE] * head)
    # scores and weighted values of the device's own heads
    assert report.attention_flops == 4 * PER_STAGE * HEADS // 2 * 16


def test_corners_are_smallest_and_largest_of_each_kind():
    from medha_jax.specs.buckets import all_buckets

    buckets = all_buckets(
        Buckets(decode=(1, 8), prefill=(16, 64), slices=()), Buckets(decode=(4,), prefill=(16,), slices=())
    )
    assert [str(bucket) for bucket in corners(buckets)] == ["1+0", "8+64", "1+0/4+0", "8+64/4+16"]
    assert [str(bucket) for bucket in corners(buckets[:1])] == ["1+0"]


def test_a_model_that_cannot_be_divided_is_refused_before_anything_is_compiled():
    with pytest.raises(LayoutError, match="not divisible by tp=8"):
        inspected(tp=8, spp=1, kvp=1, shared_buckets=None)


def test_a_layout_that_does_not_fit_the_memory_is_refused_with_the_context_that_would():
    config = RuntimeConfig(mesh=MeshConfig(page_size=16), slots=32, compilation_cache=None)
    with pytest.raises(LayoutError, match=r"usable are 1 MiB.*the longest context that would fit is \d[\d,]* tokens"):
        inspect_layout(config, ARCH, jnp.dtype("float32"), usable_bytes=2**20)
