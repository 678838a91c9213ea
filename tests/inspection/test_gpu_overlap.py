"""Halves of the rows that take turns (`overlap_rows`), as XLA schedules them for H200s: what runs beside what.

Four layers a stage of an 8B model: a tick of a chunk beside decodes, and with tp alone slices. XLA by itself would join
the sums of the slices' halves, and let some sums wait before the next layer.
"""

import pytest

from medha_jax.config import Buckets, MeshConfig
from medha_jax.inspection import load_gpu
from medha_jax.specs.sizes import row_parts
from tests.inspection.whole_programs import NEEDED, compiled

# On a GPU, XLA's scheduler may use what weights and pool (`memory_fraction`) leave of JAX's share of the memory. For a
# GPU that is not there the share is four fifths of the memory. If nothing is left, nothing runs beside a collective.
FILLED = 0.8 * MeshConfig().memory_fraction
STAGE, WIDTH = 4, 4096  # layers
OVERLAP_ROWS = 1024
OWN = Buckets(decode=(64,), prefill=(4096,), chunks=1, slices=(OVERLAP_ROWS,))
SHARED = Buckets(decode=(8,), prefill=(512,), chunks=1, slices=())
LAYOUTS = {
    "8x1x1": MeshConfig(tp=8, page_size=128, buckets=OWN, overlap_rows=OVERLAP_ROWS),
    "2x2x2": MeshConfig(2, 2, 2, page_size=128, buckets=OWN, shared_buckets=SHARED, overlap_rows=OVERLAP_ROWS),
}

# Today's numbers, so that they cannot grow: what a layer launches beside collectives, and MiB beside weights and state
KERNELS = {"8x1x1": 23, "2x2x2": 25}
TEMPORARY = {"8x1x1": 188, "2x2x2": 222}

pytestmark = NEEDED


@pytest.fixture(scope="module", params=LAYOUTS)
def inspected(request):
    layout, mesh = request.param, LAYOUTS[request.param]

    def choose(buckets):
        largest = max(buckets, key=lambda bucket: bucket.rows)
        return [largest] if largest.decodes or mesh.spp == 1 else []

    return layout, compiled(load_gpu("h200"), mesh, choose, FILLED, layers=STAGE * mesh.spp).programs


@pytest.fixture
def programs(inspected):
    return inspected[1]


def test_ticks_and_slices_are_there_and_all_is_seen(inspected):
    layout, programs = inspected
    shapes = [(one.rows, one.slice_layers) for one in programs]
    ticks_and_slices = [(64 + 4096, None), (OVERLAP_ROWS, 1), (OVERLAP_ROWS, STAGE)]
    assert shapes == (ticks_and_slices if layout == "8x1x1" else [(64 + 4096 + 8 + 512, None)])
    assert [(one.bucket, one.error, one.unseen) for one in programs if one.error or one.unseen] == []


def test_every_sum_of_the_layers_but_the_last_runs_beside_a_product(programs):
    """After the last product nothing is left to multiply."""
    for one in programs:
        halves = {f"bf16[{rows},{WIDTH}]" for rows in row_parts(one.rows, OVERLAP_ROWS)}
        sums = [sent for sent in one.sent if sent.kind == "all-reduce" and sent.result[0] in halves]
        layers = one.slice_layers or STAGE
        assert {sent.result for sent in sums} == {(half,) for half in halves}, "a half is summed alone"
        assert sum(sent.times for sent in sums) == 4 * layers, one.bucket
        assert sum(sent.beside_products for sent in sums) == 4 * layers - 1, (one.bucket, sums)


def test_one_command_buffer_has_everything(programs):
    for one in programs:
        assert (one.buffers.buffers, one.buffers.launches, one.buffers.loose) == (1, 1, ()), one.buffers.notes


def test_neither_weights_nor_pool_are_moved_and_nothing_is_padded_or_repeated(programs):
    for one in programs:
        assert [move for move in one.moves if move.moved == "pool" or move.kind == "pad"] == []
        assert sum(move.nbytes for move in one.moves if move.moved == "weights") < 2**20
        assert one.pool_aliased and one.repeated == ()


def test_what_a_layer_launches_and_temporary_memory_do_not_grow(inspected):
    layout, programs = inspected
    for one in programs:
        others = [name for name in one.layer if not name.endswith("(collective)")]
        products = [name for name in others if name.endswith("(matrix product)")]
        assert (len(products), one.steps) == (8, one.slice_layers or STAGE), one.layer
        if one.steps > 1:  # a lone layer begins with its first product
            assert len(others) <= KERNELS[layout], others
        assert one.temporary_bytes <= TEMPORARY[layout] * 2**20, (one.bucket, one.temporary_bytes)
