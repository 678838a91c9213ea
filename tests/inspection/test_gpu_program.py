"""What a program for a GPU launches, moves, sends and repeats, read from its text."""

import pytest

from medha_jax.inspection.gpu_program import (
    COLLECTIVE,
    FUSION,
    KERNEL,
    MOVE,
    OTHER,
    PRODUCT,
    DataMove,
    KernelCount,
    SentArray,
    read_program,
)
from tests.inspection.gpu_texts import BESIDE, LAYERS, PROGRAM


@pytest.fixture(scope="module")
def program():
    return read_program(PROGRAM)


def test_kernels_of_a_layer_and_besides(program):
    assert program.steps == 0, "no product reads a layer's own matrix"
    assert program.kernels == (
        KernelCount(PRODUCT, 0, 2),
        KernelCount(KERNEL, 0, 1),
        KernelCount(FUSION, 0, 2),
        KernelCount(MOVE, 0, 6),
        KernelCount(COLLECTIVE, 0, 1),
        KernelCount(OTHER, 0, 1),  # the loop's condition
    )


def test_layers_end_with_the_last_product_of_their_own():
    program = read_program(LAYERS)
    assert program.steps == 3
    assert program.layer == (
        "norm.1 (fusion)",
        "up.1 (matrix product)",
        "triton_kernel_call.1 (Triton kernel)",
        "pad_fusion (copy, pad or transpose)",
        "down.1 (matrix product)",
    ), "not the first layer, among which the copy is"
    assert program.kernels == (
        KernelCount(PRODUCT, 2, 1),
        KernelCount(KERNEL, 1, 0),
        KernelCount(FUSION, 1, 1),
        KernelCount(MOVE, 1, 1),
    )
    assert [(one.kind, one.argument, one.in_a_layer) for one in program.moves] == [
        ("copy", "", False),
        ("copy", "", True),
        ("pad", "", True),
    ]


def test_a_slice_of_one_layer():
    lines = [line for line in LAYERS.splitlines() if ".1 =" not in line and ".2 =" not in line]
    program = read_program("\n".join(lines))
    assert program.steps == 1
    assert program.layer[0] == "up.0 (matrix product)" and program.layer[-1] == "down.0 (matrix product)"


def test_moves_of_weights_pool_and_rows(program):
    weights = "layers.mlp.up.kernel"
    assert program.moves == (
        DataMove("transpose", "weights", weights, ("bf16[4,64,32]",), 2 * 4 * 64 * 32, 1, False),
        DataMove("copy", "rows", "", ("s32[7]",), 28, 1, False),
        DataMove("dynamic-slice", "weights", "layers.norm.scale", ("bf16[1,32]",), 64, 4, False),
        DataMove("pad", "rows", "", ("bf16[8,32]",), 512, 4, False),
        DataMove("copy", "rows", "", ("bf16[7,32]",), 448, 1, False),
        DataMove("copy", "pool", "state.pool", ("bf16[4,2,9,16]",), 2 * 4 * 2 * 9 * 16, 1, False),
    )


def test_what_is_computed_again(program):
    assert (program.repeated, program.repeated_products) == (("product.remat",), 1)


def test_collectives_are_counted_by_their_beginning(program):
    assert program.sent == (SentArray("all-reduce", ("bf16[7,32]",), 448, 4, 0, 4),)


def test_what_runs_beside_a_collective():
    sent = {one.result: (one.times, one.beside_products, one.beside_nothing) for one in read_program(BESIDE).sent}
    assert sent == {
        ("bf16[4,32]",): (1, 1, 0),
        ("bf16[3,32]",): (1, 0, 0),  # a copy
        ("bf16[2,32]",): (1, 0, 1),  # a collective, for which it waits
        ("bf16[1,32]",): (1, 0, 1),
    }


def test_calls_of_the_older_interface(program):
    assert program.legacy_calls == ("triton_kernel_call.0",)
    new = 'custom_call_target="triton_kernel_call_ffi", api_version=API_VERSION_TYPED_FFI'
    assert read_program(PROGRAM.replace('custom_call_target="triton_kernel_call"', new)).legacy_calls == ()


def test_a_pool_that_is_not_donated(program):
    assert program.pool_aliased
    assert not read_program(PROGRAM.replace("{0}: (2, {}, may-alias), ", "")).pool_aliased
