"""The function that XLA calls for attention of decodes: it divides the rows into tasks, and adds up their parts."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from medha_jax.attention.cpu.decode_kernel import TASK_INTS, part_numbers, write_join, write_run
from medha_jax.attention.cpu.job import Job, Kind, new_job
from medha_jax.native.instructions import INT, POINTER, WORD, Instructions, word
from medha_jax.native.tasks import begin, begin_handler

RUN_PAGES = 16  # of a task; rows of more than MOST_RUNS of them have longer runs
MOST_RUNS = 32


def decode_module(kind: Kind) -> ir.Module:
    """The module of the kernel; its one visible function has the module's name."""

    def write(code: Instructions, job: ir.Value, task: ir.Value) -> None:
        join = ir.Function(code.builder.module, ir.FunctionType(ir.VoidType(), [POINTER, WORD]), "join_parts")
        join.linkage = "internal"
        write_join(begin(join, kind.lanes), kind, *join.args)
        write_run(code, kind, join, job, task)

    handler = begin_handler(f"medha_attend_decodes_{kind.name}", kind.lanes, write)
    code, call, b = handler.code, handler.call, handler.code.builder
    queries, slots, lengths = (call.argument(number) for number in (0, 4, 5))
    rows = call.size(queries, 0)
    lengths_at = call.data(lengths)

    def pages_and_run(row: ir.Value) -> tuple[ir.Value, ir.Value]:
        pages = code.ceil_div(code.get_index(lengths_at, row), kind.page)
        run = code.ceil_div(pages, MOST_RUNS)
        return pages, b.select(b.icmp_signed(">", run, word(RUN_PAGES)), run, word(RUN_PAGES))

    def count(row: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
        return [b.add(carried[0], code.ceil_div(*pages_and_run(row)))]

    (tasks,) = code.loop(word(0), rows, [word(0)], count)
    list_ints = b.add(b.mul(tasks, word(TASK_INTS)), b.add(rows, word(1)))
    job, lists = new_job(handler, kind, tasks, b.add(list_ints, b.mul(tasks, word(part_numbers(kind)))))
    starts = code.place(lists, b.mul(tasks, word(TASK_INTS)), INT)
    fields = {
        Job.SLOTS: call.data(slots),
        Job.LENGTHS: lengths_at,
        Job.FIRST: starts,
        Job.SUMS: code.place(lists, list_ints, INT),
    }
    handler.set_fields(job, fields)

    def list_row(row: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
        code.put(b.trunc(carried[0], INT), starts, row)
        pages, run = pages_and_run(row)
        runs = code.ceil_div(pages, run)

        def list_run(number: ir.Value) -> None:
            first = b.mul(number, run)
            task = code.place(lists, b.mul(b.add(carried[0], number), word(TASK_INTS)), INT)
            code.put_indices((row, first, code.smaller(b.add(first, run), pages)), task)

        code.each(word(0), runs, list_run)
        return [b.add(carried[0], runs)]

    code.loop(word(0), rows, [word(0)], list_row)
    code.put(b.trunc(tasks, INT), starts, rows)
    handler.have_done(job, tasks)

    def join_row(row: ir.Value) -> None:
        parts = b.sub(code.get_index(starts, b.add(row, word(1))), code.get_index(starts, row))
        with b.if_then(b.icmp_signed("!=", parts, word(1))):
            b.call(handler.module.globals["join_parts"], [job, row])

    code.each(word(0), rows, join_row)
    handler.end(job)
    return handler.module
