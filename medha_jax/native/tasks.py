"""A handler of XLA's FFI whose work is cut into tasks, which threads of XLA's pool and the calling one take.

Threads of XLA's pool may all wait for each other, as when several devices share one. So nobody waits for a task that
nobody has taken: the calling thread takes tasks, too, and then waits for those that others have taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from llvmlite import ir

from medha_jax.native import frames
from medha_jax.native.instructions import INT, POINTER, WORD, Instructions, word

Field = TypeVar("Field", bound=IntEnum)
WriteRun = Callable[[Instructions, ir.Value, ir.Value], None]  # writes `run_task(job, task)`


class Header(IntEnum):
    """The first words of a job, which all threads of a call share; those of its kind and its lists follow."""

    REFERENCES = 0  # threads that may still look at it
    NEXT = 1  # task to take
    DONE = 2  # tasks that are finished
    TASKS = 3


class JobWords(IntEnum):
    """A kind of job names its words in a subclass, each with `auto()`; they follow the header."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[int]) -> int:
        return len(Header) + count


@dataclass(frozen=True)
class Handler:
    """A module with one visible function, which XLA calls, while that is written.

    Args:
        work: what a thread of XLA's pool calls with a job.
        threads: how many that pool has.
    """

    module: ir.Module
    code: Instructions
    call: frames.Call
    work: ir.Function
    threads: ir.Value

    def new_job(self, words: type[JobWords], tasks: ir.Value, numbers: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Memory for a job with its header and `words`, and where its `numbers` fp32 or int32 numbers are."""
        code, b, all_words = self.code, self.code.builder, len(Header) + len(words)
        job = code.call("malloc", POINTER, b.add(word(all_words * 8), b.mul(numbers, word(4))))
        with b.if_then(b.icmp_unsigned("==", job, ir.Constant(POINTER, None))):
            b.ret(self.call.out_of_memory())
        header = {Header.REFERENCES: word(1), Header.NEXT: word(0), Header.DONE: word(0), Header.TASKS: tasks}
        self.set_fields(job, header)
        return job, code.place(job, word(all_words), WORD)

    def set_fields(self, job: ir.Value, fields: Mapping[Field, ir.Value]) -> None:
        """Set words of a job."""
        for field, value in fields.items():
            self.code.put(value, job, field)

    def have_done(self, job: ir.Value, tasks: ir.Value) -> None:
        """Ask threads of XLA's pool for help, take tasks, and wait for those that others have taken."""
        code, call, b = self.code, self.call, self.code.builder
        helpers = b.sub(code.smaller(self.threads, tasks), word(1))
        reference = code.place(job, word(Header.REFERENCES), WORD)

        def ask(_: ir.Value) -> None:
            b.atomic_rmw("add", reference, word(1), "seq_cst")
            refused = call.schedule(self.work, job)
            with b.if_then(refused):
                b.atomic_rmw("sub", reference, word(1), "seq_cst")

        code.each(word(0), helpers, ask)
        _take_tasks(code, self.module.globals["run_task"], job)
        waiting, done = b.append_basic_block(), b.append_basic_block()
        b.branch(waiting)
        b.position_at_end(waiting)
        finished = b.load_atomic(code.place(job, word(Header.DONE), WORD), "seq_cst", 8, typ=WORD)
        code.call("sched_yield", INT)
        b.cbranch(b.icmp_signed("<", finished, tasks), waiting, done)
        b.position_at_end(done)

    def end(self, job: ir.Value) -> None:
        """Give up the job, and return to XLA."""
        _leave(self.code, job)
        self.code.builder.ret(ir.Constant(POINTER, None))


def begin_handler(name: str, lanes: int, write_run: WriteRun) -> Handler:
    """A module whose handler `name` answers XLA's other questions, and goes on where a job is to be made."""
    module = ir.Module(name)
    run = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, WORD]), "run_task")
    work = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), "work")
    handler = ir.Function(module, ir.FunctionType(POINTER, [POINTER]), name)
    run.linkage = work.linkage = "internal"
    write_run(begin(run, lanes), *run.args)
    _write_work(begin(work, lanes), run, *work.args)
    code = begin(handler, lanes)
    call = frames.Call(code, *handler.args)
    call.answer_other_questions()
    return Handler(module, code, call, work, call.threads())


def begin(function: ir.Function, lanes: int) -> Instructions:
    """Instructions at the beginning of a function."""
    return Instructions(ir.IRBuilder(function.append_basic_block("entry")), lanes)


def _take_tasks(code: Instructions, run: ir.Function, job: ir.Value) -> None:
    """Run tasks of a job until all are taken."""
    b = code.builder
    again, mine, none = b.append_basic_block(), b.append_basic_block(), b.append_basic_block()
    b.branch(again)
    b.position_at_end(again)
    task = b.atomic_rmw("add", code.place(job, word(Header.NEXT), WORD), word(1), "seq_cst")
    b.cbranch(b.icmp_signed("<", task, code.get(job, Header.TASKS)), mine, none)
    b.position_at_end(mine)
    b.call(run, [job, task])
    b.atomic_rmw("add", code.place(job, word(Header.DONE), WORD), word(1), "seq_cst")
    b.branch(again)
    b.position_at_end(none)


def _leave(code: Instructions, job: ir.Value) -> None:
    """Give up a reference to a job; the last one frees it."""
    b = code.builder
    before = b.atomic_rmw("sub", code.place(job, word(Header.REFERENCES), WORD), word(1), "seq_cst")
    with b.if_then(b.icmp_signed("==", before, word(1))):
        code.call("free", ir.VoidType(), job)


def _write_work(code: Instructions, run: ir.Function, job: ir.Value) -> None:
    """`work(job)`: what a thread of the pool does. It may come when all is done, and then only leaves."""
    _take_tasks(code, run, job)
    _leave(code, job)
    code.builder.ret_void()
