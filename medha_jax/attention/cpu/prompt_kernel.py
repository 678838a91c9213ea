"""Attention of prompt rows over a paged fp32 KV pool, as LLVM instructions.

The rows of a tile are divided into parts, and every (part, KV head) is a task. A task's queries are its rows' query
heads that share the KV head. For each STEP of tokens, the keys are transposed once, so that a vector holds one number
of many keys. Then, BLOCK queries at a time: their scores, whose sums stay in registers, a step of an online softmax,
and the weighted values.

Steps begin at multiples of their size, and what a query does not see adds nothing. So a row's result depends neither
on the chunk and the part that it is in, nor on its neighbours.
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

PART_INTS = 5  # of a part in the list: slot, first row, its position, rows, limit
BLOCK = 4
STEP = 64  # tokens, or a page if that is less
MOST_QUERIES, MOST_NUMBERS = 256, 2**15  # of a task; the numbers of its queries must stay in a core's cache


def step_of(kind: Kind) -> int:
    """Tokens of a step. A power of two."""
    return min(STEP, kind.page)


def part_rows(kind: Kind) -> int:
    """The most rows of a part."""
    return max(1, min(MOST_QUERIES, MOST_NUMBERS // kind.head_dim) // kind.group)


@dataclass(frozen=True)
class _Room:
    """A task's memory, on the stack.

    Args:
        queries: `[queries, head_dim]`, scaled; `sums`, of weighted values, likewise.
        keys: those of a step, transposed `[head_dim, step]`.
        scores: those of a block, then their weights `[BLOCK, step]`.
        tops: the largest score of each query; `totals`, the sums of weights, likewise.
        seen: tokens that each query sees; at most 0 for none.
    """

    queries: ir.Value
    sums: ir.Value
    keys: ir.Value
    scores: ir.Value
    tops: ir.Value
    totals: ir.Value
    seen: ir.Value

    @classmethod
    def new(cls, code: Instructions, kind: Kind) -> _Room:
        """Room for the largest task."""
        most = -(-part_rows(kind) * kind.group // BLOCK) * BLOCK
        step, dim = step_of(kind), kind.head_dim
        queries, sums = code.space(FLOAT, most * dim), code.space(FLOAT, most * dim)
        keys, scores = code.space(FLOAT, dim * step), code.space(FLOAT, BLOCK * step)
        tops, totals = code.space(FLOAT, most), code.space(FLOAT, most)
        return cls(queries, sums, keys, scores, tops, totals, code.space(INT, most))


@dataclass(frozen=True)
class _Part:
    """The rows of a task, and its KV head."""

    slot: ir.Value
    row: ir.Value
    start: ir.Value
    count: ir.Value
    limit: ir.Value
    head: ir.Value

    def index(self, code: Instructions, kind: Kind, query: ir.Value) -> ir.Value:
        """The place of one of its queries among all queries `[rows, heads * group]`."""
        b = code.builder
        row = b.add(self.row, b.sdiv(query, word(kind.group)))
        head = b.add(b.mul(self.head, word(kind.group)), b.srem(query, word(kind.group)))
        return b.add(b.mul(row, word(kind.queries)), head)


def write_run(code: Instructions, kind: Kind, job: ir.Value, task: ir.Value) -> None:
    """`run_task(job, task)`: output and log-sum-exp of the queries of a task."""
    b, step, byte = code.builder, step_of(kind), ir.IntType(8)
    room = _Room.new(code, kind)
    listed = code.place(pointer(code, job, Job.LIST), b.mul(b.sdiv(task, word(kind.heads)), word(PART_INTS)), INT)
    slot, row, start, count, limit = (code.get_index(listed, number) for number in range(PART_INTS))
    part = _Part(slot, row, start, count, limit, b.srem(task, word(kind.heads)))
    table = pages_of(code, job, part.slot)
    keys, after = pointer(code, job, Job.KEYS), code.get(job, Job.VALUES_AFTER)
    queries = b.mul(part.count, word(kind.group))
    blocks = code.ceil_div(queries, BLOCK)
    _write_beginning(code, kind, room, part, job, queries, b.mul(blocks, word(BLOCK)))

    def one_step(number: ir.Value) -> None:
        first = b.mul(number, word(step))
        page = code.get_index(table, b.sdiv(first, word(kind.page)))
        head = b.add(b.mul(page, word(kind.heads)), part.head)
        inside = b.mul(b.srem(first, word(kind.page)), word(kind.head_dim * kind.size))
        here = code.place(keys, b.add(b.mul(head, word(kind.head_bytes)), inside), byte)
        _write_transposed(code, kind, here, room.keys)
        values = code.place(here, after, byte)

        def one_block(number: ir.Value) -> None:
            query = b.mul(number, word(BLOCK))
            last = code.get_index(room.seen, b.add(query, word(BLOCK - 1)))  # later queries see no less
            tokens = code.smaller(b.sub(last, first), word(step))
            with b.if_then(b.icmp_signed(">", tokens, word(0))):
                _write_block(code, kind, room, values, query, first, tokens)

        code.each(word(0), blocks, one_block)

    seen = code.smaller(b.add(part.start, part.count), part.limit)
    code.each(word(0), code.ceil_div(seen, step), one_step)
    _write_end(code, kind, room, part, job, queries)
    b.ret_void()


def _write_beginning(
    code: Instructions, kind: Kind, room: _Room, part: _Part, job: ir.Value, queries: ir.Value, padded: ir.Value
) -> None:
    """Queries times the scale, and nothing summed yet. Padding behind them repeats the first query."""
    b, dim = code.builder, kind.head_dim
    given, scale = pointer(code, job, Job.QUERIES), code.all_lanes(kind.scale)

    def begin(query: ir.Value) -> None:
        real = b.select(b.icmp_signed("<", query, queries), query, word(0))
        source, own = (b.mul(index, word(dim)) for index in (part.index(code, kind, real), query))
        for piece in range(0, dim, kind.lanes):
            at = b.add(own, word(piece))
            code.store(b.fmul(code.load(given, b.add(source, word(piece))), scale), room.queries, at)
            code.store(code.all_lanes(0.0), room.sums, at)
        code.put(ir.Constant(FLOAT, NOTHING), room.tops, query)
        code.put(ir.Constant(FLOAT, 0.0), room.totals, query)
        position = b.add(part.start, b.sdiv(query, word(kind.group)))
        code.put(b.trunc(code.smaller(b.add(position, word(1)), part.limit), INT), room.seen, query)

    code.each(word(0), padded, begin)


def _write_transposed(code: Instructions, kind: Kind, keys: ir.Value, out: ir.Value) -> None:
    """Transpose the keys of a step: `[step, head_dim]` to `[head_dim, step]`, in squares of vectors."""
    b, step, lanes = code.builder, step_of(kind), kind.lanes

    def one_row(number: ir.Value) -> None:
        token = b.mul(number, word(lanes))
        for piece in range(0, kind.head_dim, lanes):
            places = [b.mul(b.add(token, word(nth)), word(kind.head_dim)) for nth in range(lanes)]
            square = [code.load(keys, b.add(place, word(piece))) for place in places]
            for nth, vector in enumerate(code.transpose(square)):
                code.store(vector, out, b.add(token, word((piece + nth) * step)))

    code.each(word(0), word(step // lanes), one_row)


def _write_block(
    code: Instructions, kind: Kind, room: _Room, values: ir.Value, query: ir.Value, first: ir.Value, tokens: ir.Value
) -> None:
    """Add a step's tokens, from position `first` on, to a block of queries, which see `tokens` of them or fewer."""
    step = step_of(kind)
    _write_scores(code, kind, room, query, first)
    scores = [code.place(room.scores, word(nth * step), FLOAT) for nth in range(BLOCK)]
    tops, totals = (code.place(array, query, FLOAT) for array in (room.tops, room.totals))
    shrinks = write_weights(code, scores, word(step // kind.lanes), tops, totals)
    _write_values(code, kind, room, values, query, tokens, shrinks)


def _write_scores(code: Instructions, kind: Kind, room: _Room, query: ir.Value, first: ir.Value) -> None:
    """The scores of a block; -inf for tokens that a query does not see."""
    b, step, lanes, dim = code.builder, step_of(kind), kind.lanes, kind.head_dim
    mine = [b.add(query, word(nth)) for nth in range(BLOCK)]
    seen = [b.trunc(b.sub(code.get_index(room.seen, one), first), INT) for one in mine]
    for columns in _columns(kind, step):

        def add(number: ir.Value, carried: Sequence[ir.Value], columns: range = columns) -> list[ir.Value]:
            at = b.mul(number, word(step))
            keys = [code.load(room.keys, b.add(at, word(column))) for column in columns]
            factors = [code.get(room.queries, b.add(b.mul(one, word(dim)), number), FLOAT) for one in mine]
            return code.add_products(factors, keys, carried)

        sums = code.loop(word(0), word(dim), [code.all_lanes(0.0)] * (BLOCK * len(columns)), add)
        places = [(nth, column) for nth in range(BLOCK) for column in columns]
        for (nth, column), score in zip(places, sums, strict=True):
            here = ir.Constant(code.integers, list(range(column, column + lanes)))
            sees = b.icmp_signed("<", here, code.all_lanes(seen[nth]))
            code.store(b.select(sees, score, code.all_lanes(-math.inf)), room.scores, word(nth * step + column))


def _write_values(
    code: Instructions,
    kind: Kind,
    room: _Room,
    values: ir.Value,
    query: ir.Value,
    tokens: ir.Value,
    shrinks: Sequence[ir.Value],
) -> None:
    """Add the weighted values of `tokens` tokens to the sums of a block."""
    b, step, dim = code.builder, step_of(kind), kind.head_dim
    for columns in _columns(kind, dim):
        places = [(nth, column) for nth in range(BLOCK) for column in columns]
        where = [b.add(b.mul(b.add(query, word(nth)), word(dim)), word(column)) for nth, column in places]
        old = [b.fmul(code.load(room.sums, at), shrinks[nth]) for at, (nth, _) in zip(where, places, strict=True)]

        def add(token: ir.Value, carried: Sequence[ir.Value], columns: range = columns) -> list[ir.Value]:
            at = b.mul(token, word(dim))
            loaded = [code.load(values, b.add(at, word(column))) for column in columns]
            weights = [code.get(room.scores, b.add(token, word(nth * step)), FLOAT) for nth in range(BLOCK)]
            return code.add_products(weights, loaded, carried)

        for at, total in zip(where, code.loop(word(0), tokens, old, add), strict=True):
            code.store(total, room.sums, at)


def _columns(kind: Kind, numbers: int) -> list[range]:
    """Where vectors of `numbers` numbers begin; of each set, a block's sums fill half of the registers."""
    count = kind.lanes * max(1, kind.registers // 2 // BLOCK)
    return [range(first, min(first + count, numbers), kind.lanes) for first in range(0, numbers, count)]


def _write_end(code: Instructions, kind: Kind, room: _Room, part: _Part, job: ir.Value, queries: ir.Value) -> None:
    """Output and log-sum-exp of a task's queries; 0 and -inf of those that see nothing."""
    b, dim = code.builder, kind.head_dim
    out, lse = (pointer(code, job, field) for field in (Job.OUT, Job.LSE))

    def end(query: ir.Value) -> None:
        some = b.icmp_signed(">", code.get_index(room.seen, query), word(0))
        index, total = part.index(code, kind, query), code.get(room.totals, query, FLOAT)
        for piece in range(0, dim, kind.lanes):
            summed = code.load(room.sums, b.add(b.mul(query, word(dim)), word(piece)))
            mean = b.select(some, b.fdiv(summed, code.all_lanes(total)), code.all_lanes(0.0))
            code.store(mean, out, b.add(b.mul(index, word(dim)), word(piece)))
        sum_exp = log_sum_exp(code, code.get(room.tops, query, FLOAT), total)
        code.put(b.select(some, sum_exp, ir.Constant(FLOAT, -math.inf)), lse, index)

    code.each(word(0), queries, end)
