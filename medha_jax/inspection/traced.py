"""Reads a traced program: its collectives, their mesh axes, and how often each runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from jax.core import ShapedArray
from jax.extend.core import Jaxpr, jaxprs_in_params

KINDS = {
    "psum": "all-reduce",
    "pmax": "all-reduce",
    "pmin": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "ppermute": "collective-permute",
    "all_to_all": "all-to-all",
    "ragged_all_to_all": "ragged-all-to-all",
    "pbroadcast": "collective-broadcast",
}


@dataclass(frozen=True)
class WrittenCollective:
    """One collective as the program is written.

    Args:
        kind: HLO opcode.
        axes: mesh axes that it runs along; None if it divides an axis into its own groups.
        dtype: element type of the result, as HLO names it.
        dims: shape of the result on one device.
        itemsize: bytes of one element.
        count: executions per run of the program; None inside a loop whose trip count depends on data.
        conditional: it is in a conditional branch, so `count` is an upper bound.
        depth: number of loops around it.
    """

    kind: str
    axes: tuple[str, ...] | None
    dtype: str
    dims: tuple[int, ...]
    itemsize: int
    count: int | None
    conditional: bool
    depth: int

    @property
    def elements(self) -> int:
        """Elements of the result on one device."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes of the result of one execution on one device."""
        return self.elements * self.itemsize


def written_collectives(
    program: Jaxpr, count: int | None = 1, conditional: bool = False, depth: int = 0
) -> Iterator[WrittenCollective]:
    """Every collective of a traced program and its inner programs, in program order.

    `count`, `conditional` and `depth` describe the program itself, as in `WrittenCollective`.
    """
    for equation in program.eqns:
        name, params = equation.primitive.name, equation.params
        if kind := KINDS.get(name.removesuffix("_invariant")):
            named = params.get("axes", params.get("axis_name"))
            axes = tuple(axis for axis in (named if isinstance(named, tuple) else (named,)) if isinstance(axis, str))
            along = None if params.get("axis_index_groups") else axes
            for result in (out.aval for out in equation.outvars if isinstance(out.aval, ShapedArray)):
                dtype, size = _hlo_name(result.dtype.name), result.dtype.itemsize
                yield WrittenCollective(kind, along, dtype, result.shape, size, count, conditional, depth)
        loop = name in ("scan", "while")
        trips = params["length"] if name == "scan" else None if name == "while" else 1
        times = None if count is None or trips is None else count * trips
        for inner in jaxprs_in_params(params):
            yield from written_collectives(inner, times, conditional or name == "cond", depth + loop)


def _hlo_name(dtype: str) -> str:
    """`bf16` of `bfloat16`, `s32` of `int32`, `f8e4m3fn` of `float8_e4m3fn`."""
    if dtype == "bool":
        return "pred"
    for ours, theirs in {"float": "f", "uint": "u", "int": "s", "complex": "c", "_": ""}.items():
        dtype = dtype.replace(ours, theirs)
    return dtype
