"""The function that XLA calls for attention of decodes: it divides the rows into tasks, and threads take them.

Threads of XLA's pool may all wait for each other, as when several devices share one. So nobody waits for a task that
nobody has taken: the calling thread takes tasks, too, and then waits for those that others have taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from medha_jax.attention.cpu import frames
from medha_jax.attention.cpu.instructions import INT, POINTER, WORD, Instructions, word
from medha_jax.attention.cpu.job import MOST_RUNS, RUN_PAGES, TASK_INTS, Job, Kind
from medha_jax.attention.cpu.kernel import write_join, write_run


def write_module(kind: Kind) -> ir.Module:
    """The module of a kernel; its one visible function has the name of the kind and is a handler of XLA's FFI."""
    module = ir.Module(kind.name)
    run = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, WORD]), "run_task")
    join = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, WORD]), "join_parts")
    work = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), "work")
    handler = ir.Function(module, ir.FunctionType(POINTER, [POINTER]), kind.name)
    for function in (run, join, work):
        function.linkage = "internal"
    write_join(_code(join, kind), kind, *join.args)
    write_run(_code(run, kind), kind, join, *run.args)
    _write_work(_code(work, kind), run, *work.args)
    _write_handler(_code(handler, kind), kind, work, join, *handler.args)
    return module


def _code(function: ir.Function, kind: Kind) -> Instructions:
    return Instructions(ir.IRBuilder(function.append_basic_block("entry")), kind.lanes)


def _take_tasks(code: Instructions, run: ir.Function, job: ir.Value) -> None:
    """Run tasks of a job until all are taken."""
    b = code.builder
    again, mine, none = b.append_basic_block(), b.append_basic_block(), b.append_basic_block()
    b.branch(again)
    b.position_at_end(again)
    task = b.atomic_rmw("add", code.place(job, word(Job.NEXT), WORD), word(1), "seq_cst")
    b.cbranch(b.icmp_signed("<", task, code.get(job, Job.TASKS)), mine, none)
    b.position_at_end(mine)
    b.call(run, [job, task])
    b.atomic_rmw("add", code.place(job, word(Job.DONE), WORD), word(1), "seq_cst")
    b.branch(again)
    b.position_at_end(none)


def _leave(code: Instructions, job: ir.Value) -> None:
    """Give up a reference to a job; the last one frees it."""
    b = code.builder
    before = b.atomic_rmw("sub", code.place(job, word(Job.REFERENCES), WORD), word(1), "seq_cst")
    with b.if_then(b.icmp_signed("==", before, word(1))):
        code.call("free", ir.VoidType(), job)


def _write_work(code: Instructions, run: ir.Function, job: ir.Value) -> None:
    """`work(job)`: what a thread of the pool does. It may come when all is done, and then only leaves."""
    _take_tasks(code, run, job)
    _leave(code, job)
    code.builder.ret_void()


def _have_done(code: Instructions, call: frames.Call, work: ir.Function, job: ir.Value, tasks: ir.Value) -> None:
    """Ask threads of XLA's pool for help, take tasks, and wait for those that others have taken."""
    b = code.builder
    helpers = b.sub(code.smaller(call.threads(), tasks), word(1))
    reference = code.place(job, word(Job.REFERENCES), WORD)

    def ask(_: ir.Value) -> None:
        b.atomic_rmw("add", reference, word(1), "seq_cst")
        refused = call.schedule(work, job)
        with b.if_then(refused):
            b.atomic_rmw("sub", reference, word(1), "seq_cst")

    code.each(word(0), helpers, ask)
    _take_tasks(code, b.module.globals["run_task"], job)
    waiting, done = b.append_basic_block(), b.append_basic_block()
    b.branch(waiting)
    b.position_at_end(waiting)
    finished = b.load_atomic(code.place(job, word(Job.DONE), WORD), "seq_cst", 8, typ=WORD)
    code.call("sched_yield", INT)
    b.cbranch(b.icmp_signed("<", finished, tasks), waiting, done)
    b.position_at_end(done)


def _write_handler(code: Instructions, kind: Kind, work: ir.Function, join: ir.Function, frame: ir.Value) -> None:
    """The function that XLA calls: prepares a job, has it done, and waits for those that still work on it."""
    b = code.builder
    call = frames.Call(code, frame)
    call.answer_other_questions()
    queries, pool, layer, table, slots, lengths = (call.argument(number) for number in range(6))
    rows = call.size(queries, 0)
    lengths_at = call.data(lengths)
    half = b.mul(call.size(pool, 2), word(kind.heads * kind.head_bytes))

    def pages_and_run(row: ir.Value) -> tuple[ir.Value, ir.Value]:
        pages = code.ceil_div(code.get_index(lengths_at, row), kind.page)
        run = code.ceil_div(pages, MOST_RUNS)
        return pages, b.select(b.icmp_signed(">", run, word(RUN_PAGES)), run, word(RUN_PAGES))

    def count(row: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
        return [b.add(carried[0], code.ceil_div(*pages_and_run(row)))]

    (tasks,) = code.loop(word(0), rows, [word(0)], count)
    list_ints = b.add(b.mul(tasks, word(TASK_INTS)), b.add(rows, word(1)))
    numbers = b.add(list_ints, b.mul(tasks, word(kind.part)))
    size = b.add(word(len(Job) * 8), b.mul(numbers, word(4)))
    job = code.call("malloc", POINTER, size)
    with b.if_then(b.icmp_unsigned("==", job, ir.Constant(POINTER, None))):
        b.ret(call.out_of_memory())
    lists = code.place(job, word(len(Job)), WORD)
    starts = code.place(lists, b.mul(tasks, word(TASK_INTS)), INT)
    layer_at = b.mul(code.get_index(call.data(layer), 0), b.mul(half, word(2)))
    fields = {
        Job.REFERENCES: word(1),
        Job.NEXT: word(0),
        Job.DONE: word(0),
        Job.TASKS: tasks,
        Job.QUERIES: call.data(queries),
        Job.KEYS: code.place(call.data(pool), layer_at, ir.IntType(8)),
        Job.TABLE: call.data(table),
        Job.SLOTS: call.data(slots),
        Job.LENGTHS: lengths_at,
        Job.OUT: call.data(call.result(0)),
        Job.LSE: call.data(call.result(1)),
        Job.LIST: lists,
        Job.FIRST: starts,
        Job.SUMS: code.place(lists, list_ints, INT),
        Job.VALUES_AFTER: half,
        Job.SLOT_PAGES: call.size(table, 1),
    }
    for field, value in fields.items():
        code.put(value, job, field)

    def list_row(row: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
        code.put(b.trunc(carried[0], INT), starts, row)
        pages, run = pages_and_run(row)
        runs = code.ceil_div(pages, run)

        def list_run(number: ir.Value) -> None:
            at = b.mul(b.add(carried[0], number), word(TASK_INTS))
            first = b.mul(number, run)
            for place, value in enumerate((row, first, code.smaller(b.add(first, run), pages))):
                code.put(b.trunc(value, INT), lists, b.add(at, word(place)))

        code.each(word(0), runs, list_run)
        return [b.add(carried[0], runs)]

    code.loop(word(0), rows, [word(0)], list_row)
    code.put(b.trunc(tasks, INT), starts, rows)
    _have_done(code, call, work, job, tasks)

    def join_row(row: ir.Value) -> None:
        parts = b.sub(code.get_index(starts, b.add(row, word(1))), code.get_index(starts, row))
        with b.if_then(b.icmp_signed("!=", parts, word(1))):
            b.call(join, [job, row])

    code.each(word(0), rows, join_row)
    _leave(code, job)
    b.ret(ir.Constant(POINTER, None))
