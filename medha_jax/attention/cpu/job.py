"""What a kernel is made for, and the memory that the threads of one call share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import auto

from llvmlite import ir

from medha_jax.attention.xla import LOG2_E
from medha_jax.native.instructions import INT, POINTER, Instructions, word
from medha_jax.native.tasks import Handler, JobWords


class Job(JobWords):
    """The words of a job of attention. Its tasks follow, and of decodes their results."""

    VALUES_AFTER = auto()  # bytes from keys to values
    SLOT_PAGES = auto()
    QUERIES = auto()  # from here on: addresses
    KEYS = auto()  # of the layer's first page
    TABLE = auto()
    OUT = auto()
    LSE = auto()
    LIST = auto()  # of tasks
    SLOTS = auto()  # from here on: of decodes alone
    LENGTHS = auto()
    FIRST = auto()  # task of each row, and at the end the number of tasks
    SUMS = auto()  # results of tasks


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
        """What tells kernels for different kinds apart, in the names of their functions."""
        dtype = "bfloat16" if self.bfloat16 else "float32"
        return f"{dtype}_{self.heads}x{self.group}x{self.head_dim}_{self.page}_{self.lanes}x{self.registers}"

    @property
    def queries(self) -> int:
        """Query heads."""
        return self.heads * self.group

    @property
    def head_bytes(self) -> int:
        """Bytes of the keys or values of one head on a page."""
        return self.page * self.head_dim * self.size

    @property
    def pieces(self) -> int:
        """Vectors of a head."""
        return self.head_dim // self.lanes

    @property
    def scale(self) -> float:
        """What queries are multiplied with, so that powers of two of the scores are weights."""
        return LOG2_E / math.sqrt(self.head_dim)


def pointer(code: Instructions, job: ir.Value, field: int) -> ir.Value:
    """A field of a job that is an address."""
    return code.get(job, field, POINTER)


def pages_of(code: Instructions, job: ir.Value, slot: ir.Value) -> ir.Value:
    """Where the page table has the pages of a slot."""
    return code.place(pointer(code, job, Job.TABLE), code.builder.mul(slot, code.get(job, Job.SLOT_PAGES)), INT)


def new_job(handler: Handler, kind: Kind, tasks: ir.Value, numbers: ir.Value) -> tuple[ir.Value, ir.Value]:
    """A job with `numbers` numbers and the fields of all attention, and where its numbers are.

    The handler's first arguments are queries, pool, layer and page table; its results are output and log-sum-exp.
    """
    code, call, b = handler.code, handler.call, handler.code.builder
    queries, pool, layer, table = (call.argument(number) for number in range(4))
    job, lists = handler.new_job(Job, tasks, numbers)
    half = b.mul(call.size(pool, 2), word(kind.heads * kind.head_bytes))
    layer_at = b.mul(code.get_index(call.data(layer), 0), b.mul(half, word(2)))
    fields = {
        Job.VALUES_AFTER: half,
        Job.SLOT_PAGES: call.size(table, 1),
        Job.QUERIES: call.data(queries),
        Job.KEYS: code.place(call.data(pool), layer_at, ir.IntType(8)),
        Job.TABLE: call.data(table),
        Job.OUT: call.data(call.result(0)),
        Job.LSE: call.data(call.result(1)),
        Job.LIST: lists,
    }
    handler.set_fields(job, fields)
    return job, lists
