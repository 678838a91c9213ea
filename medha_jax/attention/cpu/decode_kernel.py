"""Attention of single queries over a paged KV pool, as LLVM instructions.

The tokens of a row are divided into runs of pages, and every (row, run) is a task. The division depends on a row's own
length alone, and the parts of a row are added in order, so a row's result does not depend on its neighbours or on the
threads.

For each task, page by page and KV head by KV head: the scores of all query heads that share the KV head, a step of an
online softmax, and the weighted values. Keys and values are read once, with the next ones fetched meanwhile. All
arithmetic is fp32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from medha_jax.attention.cpu.job import Job, Kind, pages_of, pointer
from medha_jax.attention.cpu.online_softmax import log_sum_exp, write_weights
from medha_jax.attention.xla import NOTHING
from medha_jax.native.instructions import FLOAT, INT, Instructions, word

TASK_INTS = 3  # of a task in the list: row, first page, page after the last
Vectors = dict[tuple[int, int], ir.Value]  # by query head of the group and piece of the head


def part_numbers(kind: Kind) -> int:
    """Numbers of one task's result: weighted values, largest score and sum of weights of every query head."""
    return kind.queries * (kind.head_dim + 2)


def _part_of(code: Instructions, kind: Kind, job: ir.Value, task: ir.Value) -> ir.Value:
    """Where the result of a task is."""
    return code.place(pointer(code, job, Job.SUMS), code.builder.mul(task, word(part_numbers(kind))), FLOAT)


def _room(kind: Kind) -> int:
    """Room for the scores of one query head on a page: whole vectors."""
    return -(-kind.page // kind.lanes) * kind.lanes


def _sets(kind: Kind) -> list[range]:
    """Query heads of a group that are computed together, so that their vectors fit half of the registers."""
    step = max(1, kind.registers // 2 // kind.pieces)
    return [range(first, min(first + step, kind.group)) for first in range(0, kind.group, step)]


def write_run(code: Instructions, kind: Kind, join: ir.Function, job: ir.Value, task: ir.Value) -> None:
    """`run_task(job, task)`: the result of one task, and of its row if that has no other."""
    b, dim = code.builder, kind.head_dim
    queries, scores = code.space(FLOAT, kind.queries * dim), code.space(FLOAT, kind.group * _room(kind))
    listed = code.place(pointer(code, job, Job.LIST), b.mul(task, word(TASK_INTS)), INT)
    row, first, past = (code.get_index(listed, number) for number in range(TASK_INTS))
    length = code.get_index(pointer(code, job, Job.LENGTHS), row)
    slot = code.get_index(pointer(code, job, Job.SLOTS), row)
    table = pages_of(code, job, slot)
    keys, after = pointer(code, job, Job.KEYS), code.get(job, Job.VALUES_AFTER)
    part = _part_of(code, kind, job, task)
    numbers = kind.queries * dim

    given = code.place(pointer(code, job, Job.QUERIES), b.mul(row, word(numbers * kind.size)), ir.IntType(8))
    scale = code.all_lanes(kind.scale)

    def begin(piece: ir.Value) -> None:
        at = b.mul(piece, word(kind.lanes))
        code.store(b.fmul(code.load(given, at, kind.bfloat16), scale), queries, at)
        code.store(code.all_lanes(0.0), part, at)

    code.each(word(0), word(numbers // kind.lanes), begin)
    for head in range(kind.queries):
        code.put(ir.Constant(FLOAT, NOTHING), part, numbers + head)
        code.put(ir.Constant(FLOAT, 0.0), part, numbers + kind.queries + head)

    def one_page(number: ir.Value) -> None:
        left = code.smaller(word(kind.page), b.sub(length, b.mul(number, word(kind.page))))
        here = b.mul(code.get_index(table, number), word(kind.heads * kind.head_bytes))
        last = b.sub(past, word(1))
        following = code.get_index(table, code.smaller(b.add(number, word(1)), last))
        following = b.mul(following, word(kind.heads * kind.head_bytes))

        def one_head(head: ir.Value) -> None:
            offset = b.add(here, b.mul(head, word(kind.head_bytes)))
            more = b.icmp_signed("<", b.add(head, word(1)), word(kind.heads))
            ahead = b.select(more, b.add(offset, word(kind.head_bytes)), following)
            byte = ir.IntType(8)
            mine = code.place(keys, offset, byte)
            page = _Page(mine, code.place(mine, after, byte), code.place(keys, ahead, byte), left)
            query = b.mul(head, word(kind.group))
            _write_page(code, kind, page, queries, scores, part, query)

        code.each(word(0), word(kind.heads), one_head)

    code.each(first, past, one_page)
    starts = pointer(code, job, Job.FIRST)
    parts = b.sub(code.get_index(starts, b.add(row, word(1))), code.get_index(starts, row))
    with b.if_then(b.icmp_signed("==", parts, word(1))):
        b.call(join, [job, row])
    b.ret_void()


@dataclass(frozen=True)
class _Page:
    """One KV head of a page: where its keys, its values and the next keys are, and its tokens."""

    keys: ir.Value
    values: ir.Value
    ahead: ir.Value
    tokens: ir.Value


def _write_page(
    code: Instructions, kind: Kind, page: _Page, queries: ir.Value, scores: ir.Value, part: ir.Value, query: ir.Value
) -> None:
    """Add one KV head of a page to the part of its `group` query heads, from head `query` on."""
    rooms = [code.place(scores, word(head * _room(kind)), FLOAT) for head in range(kind.group)]
    mine = code.builder.mul(query, word(kind.head_dim))
    vectors = code.ceil_div(page.tokens, kind.lanes)
    _write_scores(code, kind, page, queries, rooms, mine, vectors)
    tops = code.place(part, code.builder.add(query, word(kind.queries * kind.head_dim)), FLOAT)
    totals = code.place(tops, word(kind.queries), FLOAT)
    shrinks = write_weights(code, rooms, vectors, tops, totals)
    _write_values(code, kind, page, rooms, part, mine, shrinks)


def _write_scores(
    code: Instructions,
    kind: Kind,
    page: _Page,
    queries: ir.Value,
    rooms: Sequence[ir.Value],
    mine: ir.Value,
    vectors: ir.Value,
) -> None:
    """The scores of a page's tokens for each query head; -inf behind them, up to whole vectors."""
    b, dim, lanes = code.builder, kind.head_dim, kind.lanes
    for number, heads in enumerate(_sets(kind)):
        held: Vectors = {
            (head, piece): code.load(queries, b.add(mine, word(head * dim + piece * lanes)))
            for head in heads
            for piece in range(kind.pieces)
        }

        def score(token: ir.Value, heads: range = heads, held: Vectors = held, fetches: bool = number == 0) -> None:
            at = b.mul(token, word(dim))
            if fetches:
                code.fetch(page.values, b.mul(at, word(kind.size)), dim * kind.size)
            sums: dict[int, ir.Value] = {}
            for piece in range(kind.pieces):
                key = code.load(page.keys, b.add(at, word(piece * lanes)), kind.bfloat16)
                for head in heads:
                    given = held[head, piece]
                    sums[head] = code.fma(given, key, sums[head]) if piece else b.fmul(given, key)
            for head in heads:
                code.put(code.sum(sums[head]), rooms[head], token)

        code.each(word(0), page.tokens, score)

    def hide(token: ir.Value) -> None:
        for room in rooms:
            code.put(ir.Constant(FLOAT, -math.inf), room, token)

    code.each(page.tokens, b.mul(vectors, word(lanes)), hide)


def _write_values(
    code: Instructions,
    kind: Kind,
    page: _Page,
    rooms: Sequence[ir.Value],
    part: ir.Value,
    mine: ir.Value,
    shrinks: Sequence[ir.Value],
) -> None:
    """Add the weighted values of a page to those of each query head, and ask for the next keys meanwhile."""
    b, dim, lanes = code.builder, kind.head_dim, kind.lanes
    for number, heads in enumerate(_sets(kind)):
        places = [(head, piece) for head in heads for piece in range(kind.pieces)]
        where = {place: b.add(mine, word(place[0] * dim + place[1] * lanes)) for place in places}
        sums = [b.fmul(code.load(part, where[place]), shrinks[place[0]]) for place in places]

        def add(
            token: ir.Value, carried: Sequence[ir.Value], heads: range = heads, fetches: bool = number == 0
        ) -> list[ir.Value]:
            at = b.mul(token, word(dim))
            if fetches:
                code.fetch(page.ahead, b.mul(at, word(kind.size)), dim * kind.size)
            weights = [code.get(rooms[head], token, FLOAT) for head in heads]
            values = [
                code.load(page.values, b.add(at, word(piece * lanes)), kind.bfloat16) for piece in range(kind.pieces)
            ]
            return code.add_products(weights, values, carried)

        for place, total in zip(places, code.loop(word(0), page.tokens, sums, add), strict=True):
            code.store(total, part, where[place])


def write_join(code: Instructions, kind: Kind, job: ir.Value, row: ir.Value) -> None:
    """`join_parts(job, row)`: output and log-sum-exp of a row from its parts; 0 and -inf of none."""
    b, dim = code.builder, kind.head_dim
    starts = pointer(code, job, Job.FIRST)
    first, past = code.get_index(starts, row), code.get_index(starts, b.add(row, word(1)))
    some = b.icmp_signed("<", first, past)

    def one_head(head: ir.Value) -> None:
        index = b.add(b.mul(row, word(kind.queries)), head)
        top_at = b.add(head, word(kind.queries * dim))

        def largest(task: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
            return [code.larger(code.all_lanes(code.get(_part_of(code, kind, job, task), top_at, FLOAT)), carried[0])]

        (tops,) = code.loop(first, past, [code.all_lanes(NOTHING)], largest)

        def add(task: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
            part = _part_of(code, kind, job, task)
            weight = code.exp2(b.fsub(code.all_lanes(code.get(part, top_at, FLOAT)), tops))
            total = code.all_lanes(code.get(part, b.add(top_at, word(kind.queries)), FLOAT))
            places = [b.add(b.mul(head, word(dim)), word(piece * kind.lanes)) for piece in range(kind.pieces)]
            loaded = [total, *(code.load(part, place) for place in places)]
            return [code.fma(weight, value, old) for value, old in zip(loaded, carried, strict=True)]

        total, *sums = code.loop(first, past, [code.all_lanes(0.0)] * (kind.pieces + 1), add)
        out = pointer(code, job, Job.OUT)
        for piece, value in enumerate(sums):
            mean = b.select(some, b.fdiv(value, total), code.all_lanes(0.0))
            code.store(mean, out, b.add(b.mul(index, word(dim)), word(piece * kind.lanes)))
        lse = log_sum_exp(code, *(b.extract_element(vector, ir.Constant(INT, 0)) for vector in (tops, total)))
        code.put(b.select(some, lse, ir.Constant(FLOAT, -math.inf)), pointer(code, job, Job.LSE), index)

    code.each(word(0), word(kind.queries), one_head)
    b.ret_void()
