"""What the devices of a mesh send to each other in one tick, read from its program.

The traced program says along which axes, how often and in which element type; the compiled text says what XLA made of
it. A collective that stands in only one of the two is shown, and not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from medha_jax.inspection.hlo import ArrayShape, Instruction
from medha_jax.inspection.traced import WrittenCollective

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Traffic:
    """Equal collectives of one program.

    Args:
        kind: HLO opcode.
        axis: mesh axes joined by `+`, empty if every device is alone, `unknown` if they follow no axes.
        shapes: of the result on one device, as compiled.
        dtype: element type that the tick is written in; the compiler may carry a wider one.
        nbytes: of one execution's result on one device, in that type; `compiled_nbytes` as compiled.
        count: executions in one tick, None where a loop has no known trip count, or where the compiler added, merged
            or removed collectives.
        conditional: a branch that need not be taken holds it; `count` is then the most.
    """

    kind: str
    axis: str
    shapes: tuple[str, ...]
    dtype: str
    nbytes: int
    compiled_nbytes: int
    count: int | None
    conditional: bool


def traffic(
    compiled: Iterable[Instruction], written: Iterable[WrittenCollective], axes: Mapping[str, int]
) -> tuple[Traffic, ...]:
    """Describe every collective of a program, in the order of the compiled text.

    Args:
        compiled: the collectives in its compiled text.
        written: those of the traced program.
        axes: devices on each axis of the mesh.
    """
    waiting: dict[tuple[str, int], list[WrittenCollective]] = {}
    # the text has the body of a loop before what is around it
    for one in sorted(written, key=lambda one: -one.depth):
        waiting.setdefault((one.kind, one.elements), []).append(one)
    found = []
    for instruction in compiled:
        same = waiting.get((instruction.opcode, instruction.elements))
        found.append(_both(instruction, same.pop(0), axes) if same else _only_compiled(instruction))
    left = [_only_written(one, axes) for same in waiting.values() for one in same]
    found += [line for line in left if line.axis]  # a sum over one device may go

    counts: Counter[Traffic] = Counter()
    for line in found:
        if line.count is not None:
            counts[replace(line, count=None)] += line.count
    uncounted = (line for line in found if line.count is None)
    return (*(replace(line, count=count) for line, count in counts.items()), *uncounted)


def bytes_by_axis(found: Sequence[Traffic]) -> dict[str, int]:
    """Result bytes a tick on one device, by axis; without what no device sends to another, or runs unknown times."""
    total: dict[str, int] = {}
    for one in found:
        if one.axis and one.count is not None:
            total[one.axis] = total.get(one.axis, 0) + one.count * one.nbytes
    return total


def _both(instruction: Instruction, one: WrittenCollective, axes: Mapping[str, int]) -> Traffic:
    return Traffic(
        kind=one.kind,
        axis=_axis(one, axes),
        shapes=tuple(map(str, instruction.shapes)),
        dtype=one.dtype,
        nbytes=one.nbytes,
        compiled_nbytes=instruction.nbytes,
        count=one.count,
        conditional=one.conditional,
    )


def _only_compiled(instruction: Instruction) -> Traffic:
    shapes, nbytes = tuple(map(str, instruction.shapes)), instruction.nbytes
    dtype = "+".join(sorted({shape.dtype for shape in instruction.shapes}))
    return Traffic(instruction.opcode, UNKNOWN, shapes, dtype, nbytes, nbytes, None, False)


def _only_written(one: WrittenCollective, axes: Mapping[str, int]) -> Traffic:
    shape = str(ArrayShape(one.dtype, one.dims))
    return Traffic(one.kind, _axis(one, axes), (shape,), one.dtype, one.nbytes, one.nbytes, None, one.conditional)


def _axis(one: WrittenCollective, axes: Mapping[str, int]) -> str:
    if one.axes is None:
        return UNKNOWN
    return "+".join(name for name, devices in axes.items() if devices > 1 and name in one.axes)
