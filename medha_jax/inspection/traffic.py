"""Traffic between the devices of a mesh in one tick or slice, read from its program.

The traced program gives the axes, number of runs and element type of each collective. The compiled text gives XLA's
final collectives. A collective that appears in only one of the two is shown but not counted.
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
        axis: mesh axes joined by `+`; empty if no device sends to another, `unknown` if the axes are not known.
        shapes: compiled shapes of the result on one device.
        dtype: element type in the traced tick; the compiler may use a wider one.
        nbytes: bytes of one result on one device in `dtype`; `compiled_nbytes` is as compiled.
        count: executions per tick; None if a loop's trip count is unknown, or if the compiler added, merged or
            removed collectives.
        conditional: it is in a conditional branch, so `count` is an upper bound.
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
    """Combine the collectives of the `compiled` text and of the traced program, in the order of the compiled text.

    `axes` gives the devices on each mesh axis.
    """
    waiting: dict[tuple[str, int], list[WrittenCollective]] = {}
    # the compiled text has a loop's body before the code around it
    for one in sorted(written, key=lambda one: -one.depth):
        waiting.setdefault((one.kind, one.elements), []).append(one)
    found = []
    for instruction in compiled:
        same = waiting.get((instruction.opcode, instruction.elements))
        found.append(_both(instruction, same.pop(0), axes) if same else _only_compiled(instruction))
    left = [_only_written(one, axes) for same in waiting.values() for one in same]
    found += [line for line in left if line.axis]  # XLA may remove a sum over one device

    counts: Counter[Traffic] = Counter()
    for line in found:
        if line.count is not None:
            counts[replace(line, count=None)] += line.count
    uncounted = (line for line in found if line.count is None)
    return (*(replace(line, count=count) for line, count in counts.items()), *uncounted)


def bytes_by_axis(found: Sequence[Traffic]) -> dict[str, int]:
    """Result bytes per tick on one device, by axis. Excludes one-device collectives and unknown counts."""
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
