"""The programs of an 8B model for H200 and A100: what they launch, record, move and compute twice.

Three layouts, each with decodes alone, decodes beside a chunk, and slices, where weights and pool take 95 % of a GPU's
memory. Compiled without a GPU, in all 32 layers; no weights. It needs jax 0.11: XLA of jax 0.10 does not finish.
"""

from importlib.util import find_spec

import jax.numpy as jnp
import jaxlib.version
import pytest

from benchmarks.gpu.counts import LLAMA_3_8B
from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.inspection import inspect_for_gpu, load_gpu
from medha_jax.inspection.inspection import virtual_programs
from medha_jax.runtime.memory import plan_memory
from medha_jax.specs.model import Architecture

OWN = Buckets(decode=(64,), prefill=(4096,), chunks=1, slices=(4096,))
SHARED = Buckets(decode=(8,), prefill=(512,), chunks=1, slices=())
LAYOUTS = {"1x1x1": (1, 1, 1), "8x1x1": (8, 1, 1), "2x2x2": (2, 2, 2)}  # tp, spp, kvp
FILLED = 0.95  # of a GPU's memory

# What a layer launches beside collectives. The aim is 14; these are today's numbers, so that they cannot grow. Over it
# are the slices of two norms' scales, a counter, and fusions around attention that are not joined.
KERNELS = {"1x1x1": 21, "8x1x1": 22, "2x2x2": 26}
SLICE_KERNELS = 26
COLLECTIVES = {"1x1x1": 0, "8x1x1": 2, "2x2x2": 3}
# MiB beside weights, pool and the rest of the state, of the largest program
TEMPORARY = {"1x1x1": 520, "8x1x1": 190, "2x2x2": 360}
# A slice of some layers copies their matrices, because the first layer is an argument; one of all layers does not.
SLICE_COPIES = {
    "layers.attention.query_key_value.kernel",
    "layers.attention.output.kernel",
    "layers.mlp.gate_up.kernel",
    "layers.mlp.down.kernel",
}
# Before the head, XLA for A100 pads the 65 rows of 64 decodes and a chunk that may need a token to 72, once a tick.
PADDED_HEAD = {"a100"}
# Each stage copies its share of the head in every tick.
HEAD_COPIES = {"1x1x1": set(), "8x1x1": set(), "2x2x2": {"head"}}

LACKING = [name for name in ("triton", "jax_triton", "jax_cuda12_plugin") if find_spec(name) is None]
pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(LACKING != [], reason="the `kernels` extra is not installed"),
    pytest.mark.skipif(jaxlib.version.__version_info__ < (0, 11), reason="XLA of jax 0.10 does not finish"),
]


def largest_of_each_kind(buckets):
    """Decodes alone and decodes beside a chunk, each with shared rows if there are groups; or all rows of slices."""
    decodes = [bucket for bucket in buckets if bucket.decodes]
    if not decodes:
        return tuple(buckets[-1:])
    alone = [bucket for bucket in decodes if bucket.rows == bucket.decodes]
    return max(alone, key=lambda bucket: bucket.rows), max(decodes, key=lambda bucket: bucket.rows)


def compiled(gpu, layout):
    tp, spp, kvp = LAYOUTS[layout]
    mesh = MeshConfig(tp=tp, spp=spp, kvp=kvp, page_size=128, buckets=OWN, shared_buckets=SHARED if kvp > 1 else None)
    arch, dtype = Architecture.from_config(LLAMA_3_8B), jnp.dtype("bfloat16")
    limit = int(FILLED * gpu.memory)

    def config(tokens):
        return RuntimeConfig(mesh=mesh, slots=64, compilation_cache=None, pool_tokens=tokens)

    memory = plan_memory(virtual_programs(config(mesh.page_size), arch, dtype, gpu.target), limit)
    filling = (limit - memory.total) // memory.pool_per_page * mesh.page_size
    return inspect_for_gpu(gpu, config(filling), arch, dtype, choose=largest_of_each_kind)


@pytest.fixture(scope="module", params=[(gpu, layout) for gpu in ("h200", "a100") for layout in LAYOUTS], ids="-".join)
def inspected(request):
    gpu, layout = load_gpu(request.param[0]), request.param[1]
    report = compiled(gpu, layout)
    assert 0.9 * gpu.memory < report.kept_bytes < FILLED * gpu.memory
    return request.param[0], layout, report.programs


@pytest.fixture
def gpu(inspected):
    return inspected[0]


@pytest.fixture
def layout(inspected):
    return inspected[1]


@pytest.fixture
def programs(inspected):
    return inspected[2]


def named(program):
    return program.bucket, program.slice_layers


def test_there_are_decodes_mixed_rows_and_slices_and_all_is_seen(programs):
    ticks = [one for one in programs if one.slice_layers is None]
    assert len(ticks) == 2 and len(programs) > len(ticks)
    assert ticks[0].rows < 128 and ticks[1].rows >= 4096
    assert [(named(one), one.error, one.unseen) for one in programs if one.error or one.unseen] == []


def test_one_command_buffer_has_everything(programs):
    for one in programs:
        assert one.buffers.loose == (), named(one)
        assert (one.buffers.buffers, one.buffers.launches) == (1, 1), (named(one), one.buffers.notes)


def test_no_pool_is_moved_and_no_rows_are_padded_but_for_what_is_known(programs, gpu):
    assert [(named(one), move) for one in programs for move in one.moves if move.moved == "pool"] == []
    for one in programs:
        pads = [move for move in one.moves if move.kind == "pad"]
        mixed = one.slice_layers is None and one.rows >= 4096
        assert len(pads) == (gpu in PADDED_HEAD and mixed), (named(one), pads)
        assert all(move.times == 1 and not move.in_a_layer and move.nbytes < 2**20 for move in pads), (named(one), pads)
    assert [named(one) for one in programs if not one.pool_aliased] == []


def test_weights_are_read_in_place_but_for_what_is_known(programs, layout):
    stage = max(one.slice_layers or 0 for one in programs)
    for one in programs:
        matrices = {move.argument for move in one.moves if move.moved == "weights" and move.nbytes >= 2**20}
        if one.slice_layers is None:
            known = HEAD_COPIES[layout]
        else:
            known = SLICE_COPIES if one.slice_layers < stage else set()
        assert matrices == known, named(one)


def test_nothing_is_computed_twice(programs):
    assert [(named(one), one.repeated) for one in programs if one.repeated] == []


def test_what_a_layer_launches_does_not_grow(programs, layout):
    for one in programs:
        sent = [name for name in one.layer if name.endswith("(collective)")]
        others = [name for name in one.layer if not name.endswith("(collective)")]
        limit = KERNELS[layout] if one.slice_layers is None else SLICE_KERNELS
        assert len(others) <= limit, (named(one), others)
        assert len(sent) <= COLLECTIVES[layout], (named(one), sent)
        if one.steps:
            assert len([name for name in others if name.endswith("(matrix product)")]) == 4, (named(one), others)


def test_temporary_memory_does_not_grow(programs, layout):
    assert [
        (named(one), one.temporary_bytes) for one in programs if one.temporary_bytes > TEMPORARY[layout] * 2**20
    ] == []
