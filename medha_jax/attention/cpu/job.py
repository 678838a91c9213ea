"""What a kernel is made for, and the memory that the threads of one call share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from llvmlite import ir

from medha_jax.attention.cpu.instructions import FLOAT, POINTER, Instructions, word

RUN_PAGES = 16  # of a task; rows of more than MOST_RUNS of them have longer runs
MOST_RUNS = 32
TASK_INTS = 3  # of a task in the list: row, first page, page after the last


class Job(IntEnum):
    """The words of a job, which all threads of a call share. Its list of tasks and their results follow."""

    REFERENCES = 0  # threads that may still look at it
    NEXT = 1  # task to take
    DONE = 2  # tasks that are finished
    TASKS = 3
    QUERIES = 4  # from here to SUMS: addresses
    KEYS = 5  # of the layer's first page
    TABLE = 6
    SLOTS = 7
    LENGTHS = 8
    OUT = 9
    LSE = 10
    LIST = 11  # of tasks
    FIRST = 12  # task of each row, and at the end the number of tasks
    SUMS = 13  # results of tasks
    VALUES_AFTER = 14  # bytes from keys to values
    SLOT_PAGES = 15


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


def pointer(code: Instructions, job: ir.Value, field: int) -> ir.Value:
    """A field of a job that is an address."""
    return code.get(job, field, POINTER)


def part_of(code: Instructions, kind: Kind, job: ir.Value, task: ir.Value) -> ir.Value:
    """Where the result of a task is."""
    return code.place(pointer(code, job, Job.SUMS), code.builder.mul(task, word(kind.part)), FLOAT)
