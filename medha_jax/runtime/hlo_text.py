"""The grammar of HLO text: computations, instructions, shapes, attributes, groups of devices. No JAX."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_COMPUTATION = re.compile(r"(ENTRY\s+)?%?([\w.\-]+)\s*(?:\(.*)?\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT\s+)?%?([\w.\-]+) = ")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\]")
_CALLED = re.compile(
    r"\b(?:condition|body|to_apply|calls|called_computations|branch_computations|true_computation|false_computation)="
    r"(?:\{([^}]*)\}|(%?[\w.\-]+))"
)
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"@?mesh\[([^\]]+)\](?:, ?device_ids=\((?:\[([\d,]+)\](?:T\(([\d,]+)\))?|([\d,]+))\))? ?\{([^}]*)\}")
_AXIS = re.compile(r"'?(\w+)'?(?:=(\d+)|:\((\d+)\)(\d+))?")


class HloError(ValueError):
    """A part of a program's text cannot be read."""


@dataclass(frozen=True)
class Shape:
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
    """One line of a computation. A tuple has several shapes; a constant's operand is its value."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool


def element_bits(dtype: str) -> int:
    """Bits of one element: `bf16` 16, `f8e4m3fn` 8, `pred` 8. Raises HloError for an unknown type."""
    if dtype in BITS:
        return BITS[dtype]
    if width := re.match(r"(?:bf|f|s|u)(\d+)", dtype):
        return int(width[1])
    raise HloError(f"element type {dtype!r} of the program's text is not known")


def computations(text: str) -> tuple[dict[str, tuple[Instruction, ...]], str]:
    """All computations by name, and the name of the entry.

    Raises:
        HloError: there is no entry computation.
    """
    found: dict[str, tuple[Instruction, ...]] = {}
    entry, name = None, None
    lines: list[Instruction] = []
    for line in text.splitlines():
        if name is None:
            if not line.startswith((" ", "HloModule")) and (header := _COMPUTATION.match(line)):
                name, lines = header[2], []
                entry = name if header[1] else entry
        elif line.startswith("}"):
            found[name], name = tuple(lines), None
        elif _INSTRUCTION.match(line):
            lines.append(_instruction(line))
    if entry is None:
        raise HloError("the text has no ENTRY computation; give the HLO text of a compiled or lowered program")
    return found, entry


def attribute(attributes: str, name: str) -> str | None:
    """The word after `name=`, without its %."""
    found = re.search(rf"\b{name}=%?([\w.\-]+)", attributes)
    return found[1] if found else None


def called(attributes: str) -> list[str]:
    """Names of the computations that an instruction calls."""
    names = []
    for several, one in _CALLED.findall(attributes):
        names += [name.strip().removeprefix("%") for name in (several or one).split(",") if name.strip()]
    return names


def device_count(text: str) -> int:
    """Devices that a module is made for: its replicas times its partitions."""
    header = next((line for line in text.splitlines() if line.startswith("HloModule")), "")
    stated = (re.search(rf"\b{name}=(\d+)", header) for name in ("replica_count", "num_partitions"))
    return math.prod(int(found[1]) for found in stated if found)


def device_groups(attributes: str, devices: int) -> tuple[bool, tuple[tuple[int, ...], ...]]:
    """Which devices a collective connects.

    Returns:
        Whether they are (source, target) pairs, and the groups or pairs. No groups stated means all devices.

    Raises:
        HloError: they stand in a form that is not known.
    """
    if "source_target_pairs={" in attributes:
        return True, _explicit(attributes, "source_target_pairs=")
    if "replica_groups=" not in attributes:
        return False, (tuple(range(devices)),)
    if "replica_groups={" in attributes:
        return False, _explicit(attributes, "replica_groups=") or (tuple(range(devices)),)
    stated = attributes[attributes.index("replica_groups=") + len("replica_groups=") :]
    if iota := _IOTA.match(stated):
        shape, dims = _numbers(iota[1]), _numbers(iota[2])
        ids = np.arange(math.prod(dims)).reshape(dims)
        ids = ids.transpose(_numbers(iota[3])) if iota[3] else ids
        return False, tuple(tuple(group) for group in ids.reshape(shape).reshape(shape[0], -1).tolist())
    if mesh := _MESH.match(stated):
        return False, _along_axes(*mesh.groups())
    raise HloError(f"replica groups {stated[:60]!r} stand in a form that is not known")


def _along_axes(
    mesh: str, iota: str | None, order: str | None, ids: str | None, grouped: str
) -> tuple[tuple[int, ...], ...]:
    """Groups along named axes of a mesh: `mesh['a'=2,'b'=4] {'b'}`.

    Args:
        mesh: its axes and their sizes.
        iota: device numbers are counted in this shape and transposed to `order`; None if they are counted in the mesh.
        order: the permutation, None for none.
        ids: device numbers in the order of the mesh, if they are listed.
        grouped: axes of a group; `'b':(2)2` is the part of an axis of size 2 after a part of size 2.
    """
    sizes = {name: int(size) for name, size, *_ in _AXIS.findall(mesh)}
    if ids:
        places = np.array(_numbers(ids))
    else:
        shape = _numbers(iota) if iota else tuple(sizes.values())
        places = np.arange(math.prod(shape)).reshape(shape)
        places = places.transpose(_numbers(order)) if order else places
    inside: dict[str, list[tuple[int, int]]] = {name: [] for name in sizes}
    for name, _, before, size in _AXIS.findall(grouped):
        first = int(before or 1)
        inside[name].append((first, first * int(size or sizes[name])))
    parts, within = [], []
    for name, size in sizes.items():
        borders = sorted({1, size, *(border for part in inside[name] for border in part)})
        for first, last in itertools.pairwise(borders):
            parts.append(last // first)
            within.append(any(start <= first and last <= end for start, end in inside[name]))
    axes = [n for n, one in enumerate(within) if not one] + [n for n, one in enumerate(within) if one]
    size = math.prod(part for part, one in zip(parts, within, strict=True) if one)
    return tuple(tuple(group) for group in places.reshape(parts).transpose(axes).reshape(-1, size).tolist())


def _explicit(attributes: str, name: str) -> tuple[tuple[int, ...], ...]:
    start = attributes.index(name) + len(name)
    stated = attributes[start : _closing(attributes, start)]
    return tuple(_numbers(group) for group in re.findall(r"\{([\d,\s]+)\}", stated))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _instruction(line: str) -> Instruction:
    head = _INSTRUCTION.match(line)
    if head is None:
        raise HloError(f"not an instruction: {line[:120]!r}")
    start = head.end()
    after = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", after)
    end = _closing(line, opening)
    return Instruction(
        name=head[2],
        shapes=_shapes(line[start:after]),
        opcode=line[after:opening].strip(),
        operands=tuple(part.split()[-1].removeprefix("%") for part in _parts(line[opening + 1 : end - 1])),
        attributes=line[end:],
        root=bool(head[1]),
    )


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(dtype, tuple(int(size.replace("<=", "")) for size in dims.split(",") if size.strip()))
        for dtype, dims in _SHAPE.findall(text)
    )


def _closing(text: str, start: int) -> int:
    """Position after the bracket that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[(\[{]|[)\]}]").finditer(text, start):
        depth += 1 if found[0] in "([{" else -1
        if depth == 0:
            return found.end()
    raise HloError(f"a bracket is not closed in {text[:120]!r}")


def _parts(text: str) -> Iterator[str]:
    """Split at the commas outside all brackets."""
    depth, start = 0, 0
    for found in re.finditer(r"[(\[{,)\]}]", text):
        if found[0] == "," and depth == 0:
            yield text[start : found.start()]
            start = found.end()
        elif found[0] != ",":
            depth += 1 if found[0] in "([{" else -1
    if text[start:].strip():
        yield text[start:]
