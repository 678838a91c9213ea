"""Reads the text of a compiled program: its instructions and the shapes of their results. No JAX."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
)
COPIES = ("copy", "copy-start", "transpose")
CONVERSIONS = ("convert",)

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
# A result is a shape without spaces, or a tuple in brackets. Layouts such as {1,0:T(8,128)} also have brackets.
_INSTRUCTION = re.compile(r"\s+(?:ROOT\s+)?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\]")


class HloError(ValueError):
    """A program's text cannot be read."""


@dataclass(frozen=True)
class ArrayShape:
    """An array's element type, as HLO names it, and its dimensions."""

    dtype: str
    dims: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, packed."""
        return -(-self.elements * element_bits(self.dtype) // 8)


@dataclass(frozen=True)
class Instruction:
    """One instruction of a program. A tuple result has several shapes."""

    name: str
    opcode: str
    shapes: tuple[ArrayShape, ...]

    @property
    def elements(self) -> int:
        """Elements of the whole result."""
        return sum(shape.elements for shape in self.shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole result."""
        return sum(shape.nbytes for shape in self.shapes)


def element_bits(dtype: str) -> int:
    """Bits of one element: `bf16` 16, `f8e4m3fn` 8, `pred` 8. Raises HloError for an unknown type."""
    if dtype in _BITS:
        return _BITS[dtype]
    if width := re.match(r"(?:bf|f|s|u)(\d+)", dtype):
        return int(width[1])
    raise HloError(f"element type {dtype!r} of the program's text is not known")


def instructions(text: str) -> tuple[Instruction, ...]:
    """Every instruction of HLO text from `compiled.as_text()`, in order, including those inside fusions.

    Raises:
        HloError: the text has no entry computation, or a line has an unknown form.
    """
    if "\nENTRY " not in text:
        raise HloError("the text has no ENTRY computation; give the HLO text of a compiled program")
    return tuple(split_instruction(line)[0] for line in text.splitlines() if is_instruction(line))


def making(program: Iterable[Instruction], opcodes: tuple[str, ...], elements: int) -> tuple[Instruction, ...]:
    """Instructions of these opcodes, e.g. COPIES, whose result has an array of this many elements."""
    return tuple(
        one for one in program if one.opcode in opcodes and any(shape.elements == elements for shape in one.shapes)
    )


def collectives(program: Iterable[Instruction]) -> tuple[Instruction, ...]:
    """The collectives. An asynchronous pair counts by its end, whose result is the collective's."""
    return tuple(
        Instruction(one.name, kind, one.shapes)
        for one in program
        if (kind := one.opcode.removesuffix("-done")) in COLLECTIVES
    )


def is_instruction(line: str) -> bool:
    """Whether a line of HLO text holds an instruction."""
    return line.startswith(" ") and " = " in line


def split_instruction(line: str) -> tuple[Instruction, str]:
    """The instruction of a line, and the text behind the bracket that opens its operands.

    Raises:
        HloError: the line has an unknown form.
    """
    head = _INSTRUCTION.match(line)
    if head is None:
        raise HloError(f"not an instruction: {line.strip()[:120]!r}")
    return Instruction(head[1], head[3], _shapes(head[2])), line[head.end() :]


def _shapes(text: str) -> tuple[ArrayShape, ...]:
    return tuple(
        ArrayShape(dtype, tuple(int(size.replace("<=", "")) for size in dims.split(",") if size.strip()))
        for dtype, dims in _SHAPE.findall(text)
    )
