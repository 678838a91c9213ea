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
from tests.inspection.gpu_texts import PROGRAM


@pytest.fixture(scope="module")
def program():
    return read_program(PROGRAM)


def test_kernels_of_a_layer_and_besides(program):
    assert program.steps == 4
    assert program.kernels == (
        KernelCount(PRODUCT, 2, 0),
        KernelCount(KERNEL, 1, 0),
        KernelCount(FUSION, 1, 1),
        KernelCount(MOVE, 2, 4),
        KernelCount(COLLECTIVE, 1, 0),
        KernelCount(OTHER, 1, 0),  # the loop's condition
    )


def test_moves_of_weights_pool_and_rows(program):
    weights = "layers.mlp.up.kernel"
    assert program.moves == (
        DataMove("transpose", "weights", weights, ("bf16[4,64,32]",), 2 * 4 * 64 * 32, 1, False),
        DataMove("copy", "rows", "", ("s32[7]",), 28, 1, False),
        DataMove("dynamic-slice", "weights", "layers.norm.scale", ("bf16[1,32]",), 64, 4, True),
        DataMove("pad", "rows", "", ("bf16[8,32]",), 512, 4, True),
        DataMove("copy", "rows", "", ("bf16[7,32]",), 448, 1, False),
        DataMove("copy", "pool", "state.pool", ("bf16[4,2,9,16]",), 2 * 4 * 2 * 9 * 16, 1, False),
    )


def test_what_is_computed_again(program):
    assert (program.repeated, program.repeated_products) == (("product.remat",), 1)


def test_collectives_are_counted_by_their_beginning(program):
    assert program.sent == (SentArray("all-reduce", ("bf16[7,32]",), 448, 4),)


def test_calls_of_the_older_interface(program):
    assert program.legacy_calls == ("triton_kernel_call.0",)
    new = 'custom_call_target="triton_kernel_call_ffi", api_version=API_VERSION_TYPED_FFI'
    assert read_program(PROGRAM.replace('custom_call_target="triton_kernel_call"', new)).legacy_calls == ()


def test_a_pool_that_is_not_donated(program):
    assert program.pool_aliased
    assert not read_program(PROGRAM.replace("{0}: (2, {}, may-alias), ", "")).pool_aliased


def test_a_program_without_a_loop_has_no_steps():
    entry = PROGRAM[PROGRAM.index("ENTRY") :]
    lines = [line for line in entry.splitlines() if "while" not in line and "condition=" not in line]
    program = read_program("HloModule one\n\n" + "\n".join(lines).replace("calls=%fused_norm", "calls=%gone") + "\n")
    assert program.steps == 0
    assert sum(kind.in_a_layer for kind in program.kernels) == 0
