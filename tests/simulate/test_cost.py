from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.config import Buckets, MeshConfig, SchedulerConfig
from medha_jax.results.metrics import waited
from medha_jax.scheduler.time_model import TickWork, slice_work
from medha_jax.simulate.cost import ACTIVATIONS, CostModel
from medha_jax.simulate.deployments import deploy
from medha_jax.simulate.hardware import Coefficients, Hardware, Link, SpecError, load_hardware
from medha_jax.simulate.named_models import load_model
from medha_jax.simulate.simulation import simulate
from medha_jax.simulate.times import GroupWork
from medha_jax.specs.buckets import NO_ROWS, Bucket, Segment, all_buckets, padded_segment
from tests.simulate.simulated import request

LLAMA, H100 = load_model("llama3-8b"), load_hardware("h100")
BUCKETS = Buckets(decode=(1, 8, 32), prefill=(64, 512, 2048), chunks=4, slices=())
SHARED = Buckets(decode=(4,), prefill=(64, 512, 2048), chunks=2, slices=())
SHAPES = all_buckets(BUCKETS, None)


def mesh_of(**settings: Any) -> MeshConfig:
    return MeshConfig(**{**dict(page_size=64, buckets=BUCKETS, shared_buckets=SHARED), **settings})


def cost(hardware: Hardware = H100, **mesh: Any) -> CostModel:
    return CostModel.of(LLAMA, mesh_of(**mesh), hardware)


def shape_of(decode: int, prefill: int = 0, shared_decode: int = 0, shared_prefill: int = 0) -> Bucket:
    return Bucket(padded_segment(BUCKETS, decode, prefill), padded_segment(SHARED, shared_decode, shared_prefill))


def lone(start: int, length: int) -> tuple[float, float]:
    return length * start + length * (length + 1) / 2, float(start + length)


def test_one_device_by_hand() -> None:
    """2,048 tokens of 8B on one H100 after 100,000 others: every part computed here once more."""
    model, used = cost(), H100.coefficients
    layer = 4096 * (2 * 32 * 128 + 2 * 8 * 128 + 3 * 14336)
    product = max(
        2 * layer * (2049 + used.matmul_rows) / (used.matmul * 9.89e14),
        2 * (layer + ACTIVATIONS * 2049 * 4096) / (used.weights * 3.35e12),
    )
    head = 2 * 128256 * 4096 / (used.weights * 3.35e12)
    squares, read = lone(100_000, 2048)
    attention = squares * 4 * 32 * 32 * 128 / (used.attention * 9.89e14)
    wanted = used.tick_s + 32 * product + head + attention
    found = model.group_seconds(shape_of(1, 2048), GroupWork([(squares, read)], rows=1))
    assert found == pytest.approx(wanted, rel=0.01)  # the head reads its few rows too
    assert model.seconds(TickWork(2049, squares, read, 1)) == pytest.approx(found)
    # a token of output reads the weights and its context
    decode = model.group_seconds(shape_of(1), GroupWork(context=500_000, rows=1)) - model.group_seconds(
        shape_of(1), GroupWork()
    )
    assert decode == pytest.approx(500_000 * 2**17 / (used.kv * 3.35e12))


def test_a_tick_is_never_shorter_than_its_launches() -> None:
    slow = dataclasses.replace(H100.coefficients, launch_s=0.01, tick_s=0.5, row_s=0.25)
    model = dataclasses.replace(cost(), coefficients=slow)
    assert model.group_seconds(shape_of(1), GroupWork(rows=2)) == pytest.approx(0.5 + 32 * 0.01 + 2 * 0.25)


def test_axes_within_a_node_use_its_link() -> None:
    model = cost(tp=4, kvp=2, spp=2, tokens_per_group=4096)
    assert [model.link(axis) for axis in ("tp", "kvp", "spp")] == [H100.near, H100.near, H100.far]
    assert cost(tp=2, spp=4).link("spp") == H100.near
    assert cost(tp=16).link("tp") == H100.far


def test_collectives_take_what_a_ring_takes() -> None:
    parts = cost(tp=8).parts(shape_of(8, 2048))
    rate, rows, samples = H100.coefficients.link * 4.5e11, 2056, 12
    one = 2 * 7 / 8 * rows * 4096 * 2 / rate + H100.near.latency
    gather = 7 / 8 * samples * 128256 * 4 / rate + H100.near.latency
    assert parts["tp"] == pytest.approx(65 * one + gather)
    assert set(cost().parts(shape_of(8, 2048))) == {"matmul", "head"}
    assert "kvp" not in cost(kvp=2, tokens_per_group=4096).parts(shape_of(8, 64))
    assert "kvp" in cost(kvp=2, tokens_per_group=4096).parts(shape_of(8, 64, 4, 64))


def test_few_queries_leave_cores_idle_where_kernels_do_not_split_the_context() -> None:
    whole = dataclasses.replace(cost(tp=8), query_tile=128)
    base = whole.group_seconds(shape_of(1, 2048), GroupWork())

    def attention(model: CostModel, length: int) -> float:
        chunk = length * 1e6, 1e6  # every query sees a million tokens
        return model.group_seconds(shape_of(1, 2048), GroupWork([chunk])) - base

    # 4 heads a device and 128 queries a block: 16 blocks on 132 cores
    assert attention(whole, 512) == pytest.approx(132 / 16 * attention(cost(tp=8), 512))
    assert attention(whole, 8192) == pytest.approx(attention(cost(tp=8), 8192))


works = st.builds(
    TickWork,
    tokens=st.sampled_from([shape.rows for shape in SHAPES]),
    attention=st.floats(0, 1e10),
    context=st.floats(0, 1e8),
    rows=st.integers(0, 64),
)


@given(st.lists(works, min_size=1, max_size=8))
@settings(max_examples=30)
def test_many_ticks_are_the_ticks_one_by_one(ticks: list[TickWork]) -> None:
    model = cost(tp=2, spp=2)
    columns = (np.array(column, float) for column in zip(*ticks, strict=True))
    assert model.many(*columns) == pytest.approx([model.seconds(tick) for tick in ticks])


@given(works, st.sampled_from(["attention", "context", "rows", "tokens"]), st.floats(1, 10))
@settings(max_examples=60)
def test_more_work_never_takes_less(work: TickWork, name: str, factor: float) -> None:
    model = cost(tp=2, spp=2)
    value = getattr(work, name)
    sizes = sorted({shape.rows for shape in SHAPES})
    more = (
        min([size for size in sizes if size >= value * factor], default=value) if name == "tokens" else value * factor
    )
    larger = work._replace(**{name: int(more) if name in ("rows", "tokens") else more})
    assert model.seconds(larger) >= model.seconds(work) * (1 - 1e-12)


chunks = st.lists(st.tuples(st.integers(0, 1_000_000), st.integers(2, 2048)), max_size=4)
group_works = st.builds(
    lambda parts, decodes: GroupWork([lone(*part) for part in parts], float(sum(decodes)), len(parts) + len(decodes)),
    chunks,
    st.lists(st.integers(1, 100_000), max_size=8),
)
RATES = ("peak", "bandwidth", "near", "far", "latency", *(field.name for field in dataclasses.fields(Coefficients)))


def faster(hardware: Hardware, name: str, factor: float) -> Hardware:
    """The hardware with one figure better by a factor."""
    if name == "peak":
        return dataclasses.replace(hardware, peak={dtype: factor * rate for dtype, rate in hardware.peak.items()})
    if name == "bandwidth":
        return dataclasses.replace(hardware, bandwidth=factor * hardware.bandwidth)
    if name in ("near", "far"):
        link: Link = getattr(hardware, name)
        return dataclasses.replace(hardware, **{name: dataclasses.replace(link, bandwidth=factor * link.bandwidth)})
    if name == "latency":
        near, far = (dataclasses.replace(link, latency=link.latency / factor) for link in (hardware.near, hardware.far))
        return dataclasses.replace(hardware, near=near, far=far)
    value = getattr(hardware.coefficients, name)
    better = value / factor if name.endswith(("_s", "_rows")) else min(1.0, value * factor)
    return dataclasses.replace(hardware, coefficients=dataclasses.replace(hardware.coefficients, **{name: better}))


@given(group_works, st.sampled_from(RATES), st.floats(1, 10), st.sampled_from(all_buckets(BUCKETS, SHARED)))
@settings(max_examples=100)
def test_better_hardware_is_never_slower(work: GroupWork, name: str, factor: float, shape: Bucket) -> None:
    layout = dict(tp=2, spp=2, kvp=2, tokens_per_group=2**20)
    before, after = cost(**layout), cost(faster(H100, name, factor), **layout)
    assert after.group_seconds(shape, work) <= before.group_seconds(shape, work) * (1 + 1e-12)


@given(group_works, st.sampled_from(["tp", "spp"]), st.integers(0, 2), st.sampled_from(SHAPES))
@settings(max_examples=60)
def test_more_devices_are_never_slower_where_links_cost_nothing(
    work: GroupWork, axis: str, doublings: int, shape: Bucket
) -> None:
    free = dataclasses.replace(H100, near=Link(1e18, 0), far=Link(1e18, 0))
    few, more = (cost(free, **{axis: 2**power}) for power in (doublings, doublings + 1))
    assert more.group_seconds(shape, work) <= few.group_seconds(shape, work) * (1 + 1e-9)


@given(group_works)
@settings(max_examples=60)
def test_sums_are_predicted_between_full_overlap_and_none(work: GroupWork) -> None:
    model, shape = cost(tp=2), shape_of(8, 2048)
    squares, read = sum(chunk[0] for chunk in work.chunks), work.context + sum(chunk[1] for chunk in work.chunks)
    predicted = model.seconds(TickWork(shape.rows, squares, read, work.rows))
    base = model.seconds(TickWork(shape.rows, 0, 0, 0))
    assert predicted <= base + model.attention_s * squares + model.context_s * read + 1e-12
    assert predicted >= base + max(model.attention_s * squares, model.context_s * read) - 1e-12
    if len(work.chunks) == work.rows == 1:
        assert predicted == pytest.approx(model.group_seconds(shape, work))


@pytest.mark.parametrize("layout", [dict(), dict(tp=2, spp=4), dict(spp=2, kvp=4, tokens_per_group=8192)], ids=str)
@pytest.mark.parametrize("prompt", [2048, 20_480, 30_001])
def test_a_lone_request_takes_the_closed_form(layout: dict[str, int], prompt: int) -> None:
    """The engine and the scheduler on the virtual clock, over one group and over several."""
    big = Buckets(decode=(1,), prefill=(2048,), chunks=1, slices=())
    mesh = mesh_of(**layout, buckets=big, shared_buckets=big)
    machine = deploy(CostModel.of(LLAMA, mesh, load_hardware("b200")), 32768, 1, "llama3-8b")
    patient = SchedulerConfig(idle_tick_s=10, tpot_target_s=10)
    outcome = simulate(machine, patient, [request(1.0, prompt, 1)])
    assert waited(outcome.records[0]) == pytest.approx(machine.isolated_prefill(prompt))


def test_what_does_not_fit_says_so() -> None:
    large = CostModel.of(load_model("llama3-70b"), mesh_of(tp=8, spp=1), load_hardware("h100"))
    with pytest.raises(SpecError, match="4,000,000 tokens of KV a group need 152.6 GiB a device; 50.6 are left"):
        deploy(large, 4 * 10**6, 1, "llama3-70b")


@pytest.mark.parametrize("layout", [{}, {"tp": 4, "spp": 2}, {"kvp": 2, "tokens_per_group": 16384}])
@given(st.integers(1, 16), st.integers(2, 2048), st.integers(0, 16000), st.booleans())
def test_a_slice_is_predicted_as_it_runs(
    layout: dict[str, int], layers: int, length: int, start: int, spread: bool
) -> None:
    """Exactly, for one chunk; and many of them at once."""
    own = dataclasses.replace(BUCKETS, slices=(512, 2048))
    model = CostModel.of(LLAMA, mesh_of(**layout, buckets=own, shared_buckets=own), H100)
    per_group = layout.get("tokens_per_group", 2**30)
    size, work = 512 if length <= 512 else 2048, GroupWork()
    work.add(start, length, per_group)
    shape = Bucket(NO_ROWS, Segment(0, size, 1)) if spread and "kvp" in layout else Bucket(Segment(0, size, 1))
    seconds = model.slice_seconds(shape, layers, work)
    features = slice_work(layers, size, *work.sums)
    predicted = model.slices.seconds(features)
    assert predicted == pytest.approx(seconds) if "kvp" not in layout else predicted >= seconds - 1e-12
    together = model.slices.many(*(np.array([value, 0.0]) for value in features))
    assert together.tolist() == pytest.approx([predicted, 0.0])
    # all layers of a stage take what a tick takes without head and sampling
    parts = (padded_segment(own, 1, size) if part.rows else NO_ROWS for part in shape)
    whole = model.slice_seconds(shape, model.sizes.layers, work)
    assert whole < model.group_seconds(Bucket(*parts), work)


def test_a_slice_in_closed_form() -> None:
    """Two layers of 512 rows on two stages: products, all-reduces of the layers and the embedding, the hand-on."""
    own = dataclasses.replace(BUCKETS, slices=(512,))
    model = CostModel.of(LLAMA, mesh_of(tp=2, spp=2, buckets=own), H100)
    work = GroupWork([(1e6, 2e3)], rows=1)
    sizes, used = model.sizes, model.used
    product = 2 * sizes.layer_weights * (512 + used.matmul_rows) / (used.matmul * H100.peak_of("bfloat16"))
    hidden = 512 * LLAMA.embed * 2
    summed = hidden / (used.link * model.link("tp").bandwidth) + model.link("tp").latency
    moved = hidden / (used.link * model.link("spp").bandwidth) + model.link("spp").latency
    attention = 1e6 * model.attention_s / sizes.layers
    found = model.slice_seconds(Bucket(Segment(0, 512, 1)), 2, work)
    assert found == pytest.approx(used.tick_s + 2 * (product + attention) + 5 * summed + moved)
