"""The function that XLA calls for attention of prompt rows: it divides tiles into parts, and these into tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llvmlite import ir

from medha_jax.attention.cpu.job import Kind, new_job
from medha_jax.attention.cpu.prompt_kernel import PART_INTS, part_rows, write_run
from medha_jax.native.instructions import FLOAT, INT, POINTER, word
from medha_jax.native.tasks import begin_handler

FEWEST_QUERIES = 32  # of a task: for fewer, its keys are not worth their transposition
THREAD_TASKS = 2  # of each thread, if the rows are enough: the last one is waited for


def prompt_module(kind: Kind) -> ir.Module:
    """The module of the kernel; its one visible function has the module's name.

    Rows that no tile covers get 0 and -inf.
    """
    name = f"medha_attend_prompts_{kind.name}"
    handler = begin_handler(name, kind.lanes, lambda code, job, task: write_run(code, kind, job, task))
    code, call, b = handler.code, handler.call, handler.code.builder
    queries, tiles = call.argument(0), call.argument(4)
    numbers = b.mul(call.size(queries, 0), word(kind.queries))
    count, tiles_at = call.size(tiles, 0), call.data(tiles)

    def tile(number: ir.Value) -> list[ir.Value]:
        at = code.place(tiles_at, b.mul(number, word(PART_INTS)), INT)
        return [code.get_index(at, place) for place in range(PART_INTS)]

    (rows,) = code.loop(word(0), count, [word(0)], lambda number, past: [b.add(past[0], tile(number)[3])])
    shared = code.ceil_div(b.mul(rows, word(kind.heads)), b.mul(handler.threads, word(THREAD_TASKS)))
    fewest = word(max(1, FEWEST_QUERIES // kind.group))
    each = code.smaller(b.select(b.icmp_signed("<", shared, fewest), fewest, shared), word(part_rows(kind)))

    def add(number: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
        return [b.add(carried[0], code.ceil_div(tile(number)[3], each))]

    (parts,) = code.loop(word(0), count, [word(0)], add)
    tasks = b.mul(parts, word(kind.heads))
    job, lists = new_job(handler, kind, tasks, b.mul(parts, word(PART_INTS)))

    def list_tile(number: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
        slot, row, start, length, limit = tile(number)
        cut = code.ceil_div(length, each)

        def list_part(nth: ir.Value) -> None:
            done = b.mul(nth, each)
            left = code.smaller(b.sub(length, done), each)
            at = code.place(lists, b.mul(b.add(carried[0], nth), word(PART_INTS)), INT)
            code.put_indices((slot, b.add(row, done), b.add(start, done), left, limit), at)

        code.each(word(0), cut, list_part)
        return [b.add(carried[0], cut)]

    code.loop(word(0), count, [word(0)], list_tile)
    out, lse = (call.data(call.result(number)) for number in range(2))
    code.call("memset", POINTER, out, ir.Constant(INT, 0), b.mul(numbers, word(4 * kind.head_dim)))
    code.each(word(0), numbers, lambda number: code.put(ir.Constant(FLOAT, -math.inf), lse, number))
    handler.have_done(job, tasks)
    handler.end(job)
    return handler.module
