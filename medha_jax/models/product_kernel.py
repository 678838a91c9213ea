"""Products of a matrix and some dozens of columns in fp32, as LLVM instructions.

XLA's own reach 40 to 70 % of what the processor does with many columns. A task is a run of the matrix's rows, in blocks
of a few: their sums for some vectors of columns stay in registers, and each number of the matrix is multiplied with all
of these. It comes from memory once. The matrix's next block is fetched meanwhile. The sums of a column are added in the
order of the matrix's columns, so they do not depend on the other columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import auto

from llvmlite import ir

from medha_jax.models.column_product import FEWEST_OUTPUTS
from medha_jax.native.compiled import Processor
from medha_jax.native.instructions import FLOAT, POINTER, Instructions, word
from medha_jax.native.tasks import JobWords, begin_handler

BLOCK = FEWEST_OUTPUTS  # rows of the matrix whose sums are computed together
TASK_BLOCKS = 8
UNROLLED = 4  # of the matrix's columns in one step of the loop
SIZE = 4  # bytes of a number


class ProductJob(JobWords):
    """The words of a job: addresses and sizes of `matrix [outputs, inputs] @ x [inputs, columns]`."""

    MATRIX = auto()
    X = auto()
    OUT = auto()
    OUTPUTS = auto()
    INPUTS = auto()
    COLUMNS = auto()


def product_module(here: Processor) -> ir.Module:
    """The module of the kernel for a processor; its one visible function has the module's name.

    Its arguments are x, the number of a matrix, and all matrices, which have the same shape.
    """
    name = f"medha_product_float32_{here.lanes}x{here.registers}"
    handler = begin_handler(name, here.lanes, lambda code, job, task: _write_run(code, here, job, task))
    code, call = handler.code, handler.call
    x, number = call.argument(0), code.get_index(call.data(call.argument(1)), 0)
    matrix = call.argument(code.builder.add(number, word(2)))
    outputs = call.size(matrix, 0)
    tasks = code.ceil_div(code.ceil_div(outputs, BLOCK), TASK_BLOCKS)
    job, _ = handler.new_job(ProductJob, tasks, word(0))
    fields = {
        ProductJob.MATRIX: call.data(matrix),
        ProductJob.X: call.data(x),
        ProductJob.OUT: call.data(call.result(0)),
        ProductJob.OUTPUTS: outputs,
        ProductJob.INPUTS: call.size(matrix, 1),
        ProductJob.COLUMNS: call.size(x, 1),
    }
    handler.set_fields(job, fields)
    handler.have_done(job, tasks)
    handler.end(job)
    return handler.module


def _write_run(code: Instructions, here: Processor, job: ir.Value, task: ir.Value) -> None:
    """`run_task(job, task)`: the sums of some blocks, for all columns."""
    b = code.builder
    first = b.mul(task, word(TASK_BLOCKS))
    outputs, columns = code.get(job, ProductJob.OUTPUTS), code.get(job, ProductJob.COLUMNS)
    past = code.smaller(b.add(first, word(TASK_BLOCKS)), code.ceil_div(outputs, BLOCK))
    vectors = code.ceil_div(columns, here.lanes)
    together = here.registers * 3 // 4 // BLOCK  # vectors; the sums of a block fill three quarters of the registers

    def one_block(number: ir.Value) -> None:
        # the last block and the last vector may begin earlier: what is computed twice is the same twice
        output = code.smaller(b.mul(number, word(BLOCK)), b.sub(outputs, word(BLOCK)))

        def columns_at(vector: ir.Value) -> ir.Value:
            return code.smaller(b.mul(vector, word(here.lanes)), b.sub(columns, word(here.lanes)))

        def some(vector: ir.Value, count: int) -> None:
            columns = [columns_at(b.add(vector, word(nth))) for nth in range(count)]
            _write_sums(code, job, output, columns)

        whole = b.sdiv(vectors, word(together))
        code.each(word(0), whole, lambda nth: some(b.mul(nth, word(together)), together))
        done = b.mul(whole, word(together))
        for count in range(1, together):
            with b.if_then(b.icmp_signed("==", b.sub(vectors, done), word(count))):
                some(done, count)

    code.each(first, past, one_block)
    b.ret_void()


def _write_sums(code: Instructions, job: ir.Value, output: ir.Value, columns: Sequence[ir.Value]) -> None:
    """The sums of a block from row `output` on, for the vectors that begin at `columns`."""
    b = code.builder
    matrix, x, out = (code.get(job, field, POINTER) for field in (ProductJob.MATRIX, ProductJob.X, ProductJob.OUT))
    inputs, width = code.get(job, ProductJob.INPUTS), code.get(job, ProductJob.COLUMNS)
    rows = [b.mul(b.add(output, word(nth)), inputs) for nth in range(BLOCK)]
    following = code.place(matrix, b.add(rows[-1], inputs), FLOAT)

    def add(number: ir.Value, sums: Sequence[ir.Value]) -> list[ir.Value]:
        vectors = [code.load(x, b.add(b.mul(number, width), column)) for column in columns]
        return code.add_products([code.get(matrix, b.add(row, number), FLOAT) for row in rows], vectors, sums)

    def add_some(number: ir.Value, sums: Sequence[ir.Value]) -> Sequence[ir.Value]:
        first = b.mul(number, word(UNROLLED))
        code.fetch(following, b.mul(first, word(BLOCK * SIZE)), UNROLLED * BLOCK * SIZE)
        for nth in range(UNROLLED):
            sums = add(b.add(first, word(nth)), sums)
        return sums

    whole = b.sdiv(inputs, word(UNROLLED))
    sums = code.loop(word(0), whole, [code.all_lanes(0.0)] * (BLOCK * len(columns)), add_some)
    sums = code.loop(b.mul(whole, word(UNROLLED)), inputs, sums, add)
    places = [(row, column) for row in range(BLOCK) for column in columns]
    for (row, column), total in zip(places, sums, strict=True):
        code.store(total, out, b.add(b.mul(b.add(output, word(row)), width), column))
