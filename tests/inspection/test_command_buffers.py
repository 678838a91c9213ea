"""What is recorded, what is left outside, and why, read from XLA's texts."""

from medha_jax.inspection.command_buffers import LEGACY, LooseThunk, read_command_buffers
from tests.inspection.gpu_texts import LOG, METADATA, THUNKS


def read(thunks=THUNKS, trips=None, legacy=("triton_kernel_call.0",)):
    return read_command_buffers(thunks, METADATA, LOG, {"while.40": 32} if trips is None else trips, legacy)


def test_buffers_their_launches_and_what_they_hold():
    found = read()
    assert (found.buffers, found.launches) == (3, 1 + 32 + 1)
    # two, then start, slice, copy and kernel in the loop, then a condition with its kernel
    assert found.recorded == 2 + 4 + 2


def test_what_is_outside_has_a_name_and_a_number_of_launches():
    assert read().loose == (
        LooseThunk("kWhile", "while.40", 1, ""),
        LooseThunk("kCustomKernel", "loop_compare_fusion", 32, ""),
        LooseThunk("kCustomCall", "triton_kernel_call.0", 32, LEGACY),
        LooseThunk("kCopy", "copy.84", 1, ""),
    )
    assert [one.why for one in read(legacy=()).loose] == [""] * 4


def test_reasons_are_xlas_own_words():
    assert read().notes == (
        "WhileThunk is not convertible to command buffers (2x)",
        "Thunk kind kCopy is not lowered to command buffer",
    )


def test_a_loop_of_unknown_length_leaves_launches_unknown():
    found = read(trips={"while.40": None})
    assert found.launches is None
    assert [one.times for one in found.loose] == [1, None, None, 1]


def test_nothing_outside():
    lines = THUNKS.splitlines(keepends=True)
    found = read("".join(lines[:3]))
    assert (found.buffers, found.launches, found.recorded, found.loose) == (1, 1, 2, ())
