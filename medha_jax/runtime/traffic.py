"""What the devices of a mesh say to each other in one tick, read from its program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jax.sharding import Mesh

from medha_jax.mesh import axes_of, axes_of_pairs
from medha_jax.runtime.hlo import Collective, Program
from medha_jax.runtime.hlo_text import element_bits

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
        count: executions in one tick, None where a loop has no known trip count.
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


Place = tuple[str, str, int]  # kind, axis and elements


def traffic(compiled: Program, written: Program, mesh: Mesh) -> tuple[Traffic, ...]:
    """Describe every collective of a compiled program.

    Args:
        compiled: what runs.
        written: the same program before compilation; says which element types were meant.
        mesh: that it was made for.
    """
    types: dict[Place, set[str]] = {}
    for collective in written.collectives:
        types.setdefault(_place(collective, mesh), set()).update(shape.dtype for shape in collective.shapes)
    counts: Counter[Traffic] = Counter()
    unknown: list[Traffic] = []
    for collective in compiled.collectives:
        one = _describe(collective, types, mesh)
        if collective.count is None:
            unknown.append(one)
        else:
            counts[one] += collective.count
    return (*(replace(one, count=count) for one, count in counts.items()), *unknown)


def bytes_by_axis(found: Sequence[Traffic]) -> dict[str, int]:
    """Result bytes a tick on one device, by axis; without what no device sends to another, or runs unknown times."""
    total: dict[str, int] = {}
    for one in found:
        if one.axis and one.count is not None:
            total[one.axis] = total.get(one.axis, 0) + one.count * one.nbytes
    return total


def _describe(collective: Collective, types: Mapping[Place, set[str]], mesh: Mesh) -> Traffic:
    """The collective without its count."""
    place = _place(collective, mesh)
    carried = {shape.dtype for shape in collective.shapes}
    meant = types.get(place, carried)
    dtype, nbytes = "+".join(sorted(carried)), collective.nbytes
    if len(meant) == 1:
        dtype = next(iter(meant))
        nbytes = collective.elements * element_bits(dtype) // 8
    return Traffic(
        kind=collective.kind,
        axis=place[1],
        shapes=tuple(map(str, collective.shapes)),
        dtype=dtype,
        nbytes=nbytes,
        compiled_nbytes=collective.nbytes,
        count=None,
        conditional=collective.conditional,
    )


def _place(collective: Collective, mesh: Mesh) -> Place:
    axes = (axes_of_pairs if collective.pairs else axes_of)(collective.groups, mesh)
    return collective.kind, UNKNOWN if axes is None else "+".join(axes), collective.elements
