"""What a compiled program runs, how often, and where operands come from."""

import pytest

from medha_jax.inspection.computations import CompiledText, Operand
from medha_jax.inspection.hlo import HloError
from tests.inspection.gpu_texts import PROGRAM


@pytest.fixture(scope="module")
def program():
    return CompiledText.parse(PROGRAM)


@pytest.fixture(scope="module")
def runs(program):
    return {one.operation.made.name: one for one in program.executed()}


def never(operation):
    return False


def test_what_runs_is_found_inside_loops_branches_and_asynchronous_calls(runs):
    assert [name for name, one in runs.items() if one.loop is None] == [
        "transposed",
        "copy.1",
        "rows",
        "copy.9",
        "copy.2",
    ]
    assert {one.times for one in runs.values() if one.loop} == {4}
    assert {one.loop for one in runs.values()} == {None, "while.40"}
    assert runs["slice_fusion"].loop == "while.40" and runs["compare.1"].loop == "while.40"
    assert [name for name, one in runs.items() if one.conditional] == ["copy.9"]


def test_what_is_inside_a_fusion_does_not_run_by_itself(runs):
    assert not {"dynamic-slice.1", "custom-call.8", "pad.1"} & set(runs)


def test_a_loop_of_unknown_length_runs_unknown_times():
    text = CompiledText.parse(PROGRAM.replace("known_trip_count", "unknown"))
    assert {one.times for one in text.executed() if one.loop} == {None}


def test_an_operand_is_traced_to_the_programs_argument(program, runs):
    product, call = runs["product"], runs["triton_kernel_call.0"]
    assert program.argument(call.scope, call.operation.operands[1], never) == "state.pool"
    # the transposed copy is another array
    assert program.argument(product.scope, product.operation.operands[0], never) is None
    weights = program.argument(product.scope, product.operation.operands[0], lambda one: one.made.opcode == "transpose")
    assert weights == "parameters['layers.mlp.up.kernel']"
    inside = runs["slice_fusion"]
    assert program.argument(inside.scope, inside.operation.operands[0], never) == "parameters['layers.norm.scale']"
    assert program.argument(product.scope, product.operation.operands[2], never) is None
    assert program.argument(product.scope, Operand("not there"), never) is None
    assert program.argument(runs["copy.2"].scope, Operand("while.40", 2), never) == "state.pool"


def test_arguments_whose_memory_is_taken_over(program):
    assert program.aliased == {"state.pool", "plans"}


def test_text_that_is_no_program():
    with pytest.raises(HloError, match="no ENTRY computation"):
        CompiledText.parse("HloModule nothing\n")
