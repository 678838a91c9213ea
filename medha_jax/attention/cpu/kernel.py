"""Attention of single queries over a paged KV pool, as LLVM instructions.

The tokens of a row are divided into runs of pages, and every (row, run) is a task. Threads of XLA's pool and the
calling one take tasks, one after the other, until none is left. The division depends on a row's own length alone, and
the parts of a row are added in order, so a row's result does not depend on its neighbours or on the threads.

For each task, page by page and KV head by KV head: the scores of all query heads that share the KV head, an online
softmax in base two (arXiv 1805.02867), and the weighted values. Keys and values are read once, with the next ones
fetched meanwhile. All arithmetic is fp32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from medha_jax.attention.cpu import frames
from medha_jax.attention.cpu.code import FLOAT, INT, POINTER, WORD, Code, word

RUN_PAGES = 16  # of a task; rows of more than MOST_RUNS of them have longer runs
MOST_RUNS = 32
NOTHING = -1e30  # below every score
LN_2, LOG2_E = math.log(2), math.log2(math.e)
# words of a job, which all its tasks share; its lists and sums follow
REFERENCES, NEXT, DONE, TASKS = 0, 1, 2, 3
QUERIES, KEYS, TABLE, SLOTS, LENGTHS, OUT, LSE, LIST, FIRST, SUMS = range(4, 14)
VALUES_AFTER, SLOT_PAGES, ROWS = 14, 15, 16  # bytes from keys to values; pages of a slot; rows
JOB_WORDS = 17
TASK_INTS = 3  # of a task in the list: row, first page, page after the last


@dataclass(frozen=True)
class Kind:
    """What a kernel is made for.

    Args:
        heads: KV heads of the pool; `group` query heads share each.
        page: tokens of a page.
        bfloat16: queries and pool are bfloat16, not fp32.
        lanes: elements of a vector; divides `head_dim`.
        registers: vectors that the processor can hold at a time.
    """

    heads: int
    group: int
    head_dim: int
    page: int
    bfloat16: bool
    lanes: int
    registers: int

    @property
    def size(self) -> int:
        """Bytes of an element of queries and pool."""
        return 2 if self.bfloat16 else 4

    @property
    def name(self) -> str:
        """The name of its function in XLA's programs. Another name is needed when what it computes changes."""
        dtype = "bfloat16" if self.bfloat16 else "float32"
        return f"medha_attend_decodes_{dtype}_{self.heads}x{self.group}x{self.head_dim}_{self.page}"

    @property
    def queries(self) -> int:
        """Query heads."""
        return self.heads * self.group

    @property
    def head_bytes(self) -> int:
        """Bytes of the keys or values of one head on a page."""
        return self.page * self.head_dim * self.size

    @property
    def part(self) -> int:
        """Numbers of one task's result: weighted values, largest score and sum of weights of every query head."""
        return self.queries * (self.head_dim + 2)

    @property
    def scores(self) -> int:
        """Room for the scores of one query head on a page: whole vectors."""
        return -(-self.page // self.lanes) * self.lanes

    @property
    def pieces(self) -> int:
        """Vectors of a head."""
        return self.head_dim // self.lanes

    def sets(self) -> list[range]:
        """Query heads of a group that are computed together, so that their vectors fit half of the registers."""
        step = max(1, self.registers // 2 // self.pieces)
        return [range(first, min(first + step, self.group)) for first in range(0, self.group, step)]


def write_module(kind: Kind) -> ir.Module:
    """The module of a kernel; its one visible function has the name of the kind and is a handler of XLA's FFI."""
    module = ir.Module(kind.name)
    run = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, WORD]), "run_task")
    join = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, WORD]), "join_parts")
    work = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), "work")
    handler = ir.Function(module, ir.FunctionType(POINTER, [POINTER]), kind.name)
    for function in (run, join, work):
        function.linkage = "internal"
    _write_join(_code(join, kind), kind, *join.args)
    _write_run(_code(run, kind), kind, join, *run.args)
    _write_work(_code(work, kind), run, *work.args)
    _write_handler(_code(handler, kind), kind, work, join, *handler.args)
    return module


def _code(function: ir.Function, kind: Kind) -> Code:
    return Code(ir.IRBuilder(function.append_basic_block("entry")), kind.lanes)


def _pointer(code: Code, job: ir.Value, field: int) -> ir.Value:
    return code.get(job, field, POINTER)


def _part(code: Code, kind: Kind, job: ir.Value, task: ir.Value) -> ir.Value:
    return code.place(_pointer(code, job, SUMS), code.builder.mul(task, word(kind.part)), FLOAT)


def _write_run(code: Code, kind: Kind, join: ir.Function, job: ir.Value, task: ir.Value) -> None:
    """`run_task(job, task)`: the result of one task, and of its row if that has no other."""
    b, dim = code.builder, kind.head_dim
    queries, scores = code.space(FLOAT, kind.queries * dim), code.space(FLOAT, kind.group * kind.scores)
    listed = code.place(_pointer(code, job, LIST), b.mul(task, word(TASK_INTS)), INT)
    row, first, past = (code.get_index(listed, number) for number in range(TASK_INTS))
    length = code.get_index(_pointer(code, job, LENGTHS), row)
    slot = code.get_index(_pointer(code, job, SLOTS), row)
    table = code.place(_pointer(code, job, TABLE), b.mul(slot, code.get(job, SLOT_PAGES)), INT)
    keys, after = _pointer(code, job, KEYS), code.get(job, VALUES_AFTER)
    part = _part(code, kind, job, task)
    numbers = kind.queries * dim

    given = code.place(_pointer(code, job, QUERIES), b.mul(row, word(numbers * kind.size)), ir.IntType(8))
    scale = code.all_lanes(LOG2_E / math.sqrt(dim))

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
    starts = _pointer(code, job, FIRST)
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
    code: Code, kind: Kind, page: _Page, queries: ir.Value, scores: ir.Value, part: ir.Value, query: ir.Value
) -> None:
    """Add one KV head of a page to the part of its `group` query heads, from head `query` on."""
    b, dim, lanes = code.builder, kind.head_dim, kind.lanes
    mine = b.mul(query, word(dim))
    vectors = code.ceil_div(page.tokens, lanes)

    def vector(index: ir.Value) -> ir.Value:
        return b.mul(index, word(lanes))

    def room(head: int) -> ir.Value:
        return code.place(scores, word(head * kind.scores), FLOAT)

    for number, heads in enumerate(kind.sets()):
        held = {
            (head, piece): code.load(queries, b.add(mine, word(head * dim + piece * lanes)))
            for head in heads
            for piece in range(kind.pieces)
        }

        def score(token: ir.Value, heads: range = heads, held: dict = held, fetches: bool = number == 0) -> None:
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
                code.put(code.sum(sums[head]), room(head), token)

        code.each(word(0), page.tokens, score)

    def hide(token: ir.Value) -> None:
        for head in range(kind.group):
            code.put(ir.Constant(FLOAT, -math.inf), room(head), token)

    code.each(page.tokens, vector(vectors), hide)

    shrinks = []
    for head in range(kind.group):
        at = b.add(query, word(kind.queries * dim + head))
        total_at = b.add(at, word(kind.queries))
        old = code.get(part, at, FLOAT)

        def largest(index: ir.Value, carried: Sequence[ir.Value], head: int = head) -> list[ir.Value]:
            return [code.larger(code.load(room(head), vector(index)), carried[0])]

        (tops,) = code.loop(word(0), vectors, [code.all_lanes(old)], largest)
        top = code.largest(tops)
        tops = code.all_lanes(top)

        def weigh(
            index: ir.Value, carried: Sequence[ir.Value], head: int = head, tops: ir.Value = tops
        ) -> list[ir.Value]:
            weights = code.exp2(b.fsub(code.load(room(head), vector(index)), tops))
            code.store(weights, room(head), vector(index))
            return [b.fadd(carried[0], weights)]

        (weights,) = code.loop(word(0), vectors, [code.all_lanes(0.0)], weigh)
        shrink = code.exp2(b.fsub(code.all_lanes(old), tops))
        shrinks.append(shrink)
        kept = b.fmul(code.get(part, total_at, FLOAT), b.extract_element(shrink, ir.Constant(INT, 0)))
        code.put(b.fadd(kept, code.sum(weights)), part, total_at)
        code.put(top, part, at)

    for number, heads in enumerate(kind.sets()):
        places = [(head, piece) for head in heads for piece in range(kind.pieces)]
        where = {place: b.add(mine, word(place[0] * dim + place[1] * lanes)) for place in places}
        sums = [b.fmul(code.load(part, where[place]), shrinks[place[0]]) for place in places]

        def add(
            token: ir.Value, carried: Sequence[ir.Value], heads: range = heads, fetches: bool = number == 0
        ) -> list[ir.Value]:
            at = b.mul(token, word(dim))
            if fetches:
                code.fetch(page.ahead, b.mul(at, word(kind.size)), dim * kind.size)
            weights = [code.all_lanes(code.get(room(head), token, FLOAT)) for head in heads]
            values = [
                code.load(page.values, b.add(at, word(piece * lanes)), kind.bfloat16) for piece in range(kind.pieces)
            ]
            products = [(weight, value) for weight in weights for value in values]
            return [code.fma(*pair, total) for pair, total in zip(products, carried, strict=True)]

        for place, total in zip(places, code.loop(word(0), page.tokens, sums, add), strict=True):
            code.store(total, part, where[place])


def _write_join(code: Code, kind: Kind, job: ir.Value, row: ir.Value) -> None:
    """`join_parts(job, row)`: output and log-sum-exp of a row from its parts; 0 and -inf of none."""
    b, dim = code.builder, kind.head_dim
    starts = _pointer(code, job, FIRST)
    first, past = code.get_index(starts, row), code.get_index(starts, b.add(row, word(1)))
    some = b.icmp_signed("<", first, past)

    def one_head(head: ir.Value) -> None:
        index = b.add(b.mul(row, word(kind.queries)), head)
        top_at = b.add(head, word(kind.queries * dim))

        def largest(task: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
            return [code.larger(code.all_lanes(code.get(_part(code, kind, job, task), top_at, FLOAT)), carried[0])]

        (tops,) = code.loop(first, past, [code.all_lanes(NOTHING)], largest)

        def add(task: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
            part = _part(code, kind, job, task)
            weight = code.exp2(b.fsub(code.all_lanes(code.get(part, top_at, FLOAT)), tops))
            total = code.all_lanes(code.get(part, b.add(top_at, word(kind.queries)), FLOAT))
            places = [b.add(b.mul(head, word(dim)), word(piece * kind.lanes)) for piece in range(kind.pieces)]
            loaded = [total, *(code.load(part, place) for place in places)]
            return [code.fma(weight, value, old) for value, old in zip(loaded, carried, strict=True)]

        total, *sums = code.loop(first, past, [code.all_lanes(0.0)] * (kind.pieces + 1), add)
        out = _pointer(code, job, OUT)
        for piece, value in enumerate(sums):
            mean = b.select(some, b.fdiv(value, total), code.all_lanes(0.0))
            code.store(mean, out, b.add(b.mul(index, word(dim)), word(piece * kind.lanes)))
        zero = ir.Constant(INT, 0)
        log = code.call("llvm.log2.f32", FLOAT, b.extract_element(total, zero))
        lse = b.fmul(b.fadd(b.extract_element(tops, zero), log), ir.Constant(FLOAT, LN_2))
        code.put(b.select(some, lse, ir.Constant(FLOAT, -math.inf)), _pointer(code, job, LSE), index)

    code.each(word(0), word(kind.queries), one_head)
    b.ret_void()


def _take_tasks(code: Code, run: ir.Function, job: ir.Value) -> None:
    """Run tasks of a job until all are taken."""
    b = code.builder
    again, mine, none = b.append_basic_block(), b.append_basic_block(), b.append_basic_block()
    b.branch(again)
    b.position_at_end(again)
    task = b.atomic_rmw("add", code.place(job, word(NEXT), WORD), word(1), "seq_cst")
    b.cbranch(b.icmp_signed("<", task, code.get(job, TASKS)), mine, none)
    b.position_at_end(mine)
    b.call(run, [job, task])
    b.atomic_rmw("add", code.place(job, word(DONE), WORD), word(1), "seq_cst")
    b.branch(again)
    b.position_at_end(none)


def _leave(code: Code, job: ir.Value, times: int = 1) -> None:
    """Give up references to a job; the last one frees it."""
    b = code.builder
    before = b.atomic_rmw("sub", code.place(job, word(REFERENCES), WORD), word(times), "seq_cst")
    with b.if_then(b.icmp_signed("==", before, word(times))):
        code.call("free", ir.VoidType(), job)


def _write_work(code: Code, run: ir.Function, job: ir.Value) -> None:
    """`work(job)`: what a thread of the pool does. It may come when all is done, and then only leaves."""
    _take_tasks(code, run, job)
    _leave(code, job)
    code.builder.ret_void()


def _write_handler(code: Code, kind: Kind, work: ir.Function, join: ir.Function, frame: ir.Value) -> None:
    """The function that XLA calls: prepares a job, has it done, and waits for those that still work on it."""
    b = code.builder
    call = frames.Call(code, frame)
    call.space()
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
    size = b.add(word(JOB_WORDS * 8), b.mul(numbers, word(4)))
    job = code.call("malloc", POINTER, size)
    with b.if_then(b.icmp_unsigned("==", job, ir.Constant(POINTER, None))):
        b.ret(call.out_of_memory())
    lists = code.place(job, word(JOB_WORDS), WORD)
    starts = code.place(lists, b.mul(tasks, word(TASK_INTS)), INT)
    layer_at = b.mul(code.get_index(call.data(layer), 0), b.mul(half, word(2)))
    fields = {
        REFERENCES: word(1),
        NEXT: word(0),
        DONE: word(0),
        TASKS: tasks,
        QUERIES: call.data(queries),
        KEYS: code.place(call.data(pool), layer_at, ir.IntType(8)),
        TABLE: call.data(table),
        SLOTS: call.data(slots),
        LENGTHS: lengths_at,
        OUT: call.data(call.result(0)),
        LSE: call.data(call.result(1)),
        LIST: lists,
        FIRST: starts,
        SUMS: code.place(lists, list_ints, INT),
        VALUES_AFTER: half,
        SLOT_PAGES: call.size(table, 1),
        ROWS: rows,
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
    helpers = b.sub(code.smaller(call.threads(), tasks), word(1))
    reference = code.place(job, word(REFERENCES), WORD)

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
    finished = b.load_atomic(code.place(job, word(DONE), WORD), "seq_cst", 8, typ=WORD)
    code.call("sched_yield", INT)
    b.cbranch(b.icmp_signed("<", finished, tasks), waiting, done)
    b.position_at_end(done)

    def join_row(row: ir.Value) -> None:
        parts = b.sub(code.get_index(starts, b.add(row, word(1))), code.get_index(starts, row))
        with b.if_then(b.icmp_signed("!=", parts, word(1))):
            b.call(join, [job, row])

    code.each(word(0), rows, join_row)
    _leave(code, job)
    b.ret(ir.Constant(POINTER, None))
