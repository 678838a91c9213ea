"""What a program compiled for a GPU launches, moves and sends, read from its optimized text. No JAX."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medha_jax.inspection.computations import FREE, CompiledText, Executed, Operation
from medha_jax.inspection.hlo import COLLECTIVES

PRODUCT, KERNEL, CALL, COLLECTIVE, MOVE, FUSION, OTHER = (
    "matrix product",
    "Triton kernel",
    "other custom call",
    "collective",
    "copy, pad or transpose",
    "fusion",
    "other",
)
TRITON_CALLS = ("triton_kernel_call", "triton_kernel_call_ffi")  # of jax-triton 0.3 and 0.4
WEIGHTS, POOL, ROWS = "weights", "pool", "rows"

_MOVES = frozenset({"copy", "copy-start", "transpose", "pad", "slice", "dynamic-slice", "reshape", "convert"})
_TOLD = ("pad", "transpose", "convert", "dynamic-slice", "slice", "copy")  # what a move is named after
_PRODUCTS = ("dot", "convolution")
_LAYER_MATRIX = re.compile(r"parameters\['layers\..+\.(\d+)'\]")  # an argument's name


@dataclass(frozen=True)
class KernelCount:
    """Operations of one kind: in the layer that launches most, and outside of layers, where some may not run.

    The first layer does not count if there are others, because what comes before layers may be launched among it.
    """

    kind: str
    in_a_layer: int
    outside: int


@dataclass(frozen=True)
class DataMove:
    """An operation that only moves data.

    Args:
        kind: HLO opcode of what it does, e.g. `pad` also if a fusion does it.
        moved: `weights`, `pool` or `rows`; the latter are whatever else the program computes with.
        argument: the program's argument that is moved, empty if it is none.
        result: shapes of the result on one device.
        nbytes: of the result of one run.
        times: runs in one run of the program; None if unknown.
        in_a_layer: a layer does it.
    """

    kind: str
    moved: str
    argument: str
    result: tuple[str, ...]
    nbytes: int
    times: int | None
    in_a_layer: bool


@dataclass(frozen=True)
class SentArray:
    """Equal collectives: kind, result on one device, bytes of one result, and runs in one run of the program.

    Args:
        beside_products: runs that have a matrix product beside them: it is launched before the collective's end is
            awaited. `beside_nothing` have nothing at all. None if unknown, as `times`.
    """

    kind: str
    result: tuple[str, ...]
    nbytes: int
    times: int | None
    beside_products: int | None
    beside_nothing: int | None


@dataclass(frozen=True)
class ProgramText:
    """What the text of one compiled program says.

    Args:
        steps: layers that it computes.
        repeated: names of instructions that the compiler computes again to save memory.
        repeated_products: how many of them are matrix products.
        legacy_calls: custom calls of an interface that XLA records in no command buffer.
        pool_aliased: the pool's memory is that of the result, so that no second pool is needed.
        trips: steps of every loop by the name of its instruction; None if unknown.
        layer: what the layer that launches most launches, by name and kind.
    """

    steps: int
    kernels: tuple[KernelCount, ...]
    moves: tuple[DataMove, ...]
    repeated: tuple[str, ...]
    repeated_products: int
    legacy_calls: tuple[str, ...]
    sent: tuple[SentArray, ...]
    pool_aliased: bool
    trips: dict[str, int | None]
    layer: tuple[str, ...]


def read_program(text: str) -> ProgramText:
    """Read the optimized text of a tick or slice.

    Raises:
        HloError: the text has an unknown form.
    """
    program = CompiledText.parse(text)
    executed = list(program.executed())
    kinds = [_kind(program, one.operation) for one in executed]
    layers = _layers(program, executed, kinds)
    of_layer: dict[int, list[int]] = {}
    for at, layer in enumerate(layers):
        if layer is not None:
            of_layer.setdefault(layer, []).append(at)
    largest = max(list(of_layer.values())[1:] or of_layer.values(), key=len, default=[])
    inside = Counter(kinds[at] for at in largest)
    outside = Counter(kind for kind, layer in zip(kinds, layers, strict=True) if layer is None)
    order = (PRODUCT, KERNEL, FUSION, MOVE, COLLECTIVE, CALL, OTHER)
    loops = [one for inner in program.computations.values() for one in inner.values() if one.made.opcode == "while"]
    trips = {one.made.name: one.trips for one in loops}
    again = [(one, kind) for one, kind in zip(executed, kinds, strict=True) if ".remat" in one.operation.made.name]
    calls = [one.operation for one, kind in zip(executed, kinds, strict=True) if kind in (KERNEL, CALL)]
    return ProgramText(
        steps=len(of_layer),
        kernels=tuple(KernelCount(kind, inside[kind], outside[kind]) for kind in order if inside[kind] + outside[kind]),
        moves=tuple(
            _move(program, one, layer is not None)
            for one, kind, layer in zip(executed, kinds, layers, strict=True)
            if kind == MOVE
        ),
        repeated=tuple(one.operation.made.name for one, _ in again),
        repeated_products=sum(kind == PRODUCT for _, kind in again),
        legacy_calls=tuple(one.made.name for one in calls if "api_version=API_VERSION_TYPED_FFI" not in one.text),
        sent=_sent(program, executed, kinds),
        pool_aliased=any(name.startswith("state.pool") for name in program.aliased),
        trips=trips,
        layer=tuple(f"{executed[at].operation.made.name} ({kinds[at]})" for at in largest),
    )


def _kind(program: CompiledText, operation: Operation) -> str:
    opcode = operation.made.opcode
    target = _target(operation)
    inner = program.fused(operation) if opcode == "fusion" else (operation,)
    if opcode.removesuffix("-start") in COLLECTIVES:
        return COLLECTIVE
    if any(one.made.opcode in _PRODUCTS or _target(one).startswith("__cublas") for one in inner):
        return PRODUCT
    if opcode == "custom-call":
        return KERNEL if target in TRITON_CALLS else CALL
    if opcode in _MOVES or (opcode == "fusion" and _only_moves(inner)):
        return MOVE
    return FUSION if opcode == "fusion" else OTHER


def _target(operation: Operation) -> str:
    return operation.text.partition('custom_call_target="')[2].partition('"')[0]


def _only_moves(inner: Iterable[Operation]) -> bool:
    """Whether a fusion only moves data; arithmetic on single numbers finds the place."""
    large = [one.made for one in inner if one.made.elements > 1]
    return all(one.opcode in _MOVES or one.opcode in FREE for one in large) and any(
        one.made.opcode in _MOVES for one in inner
    )


def _layers(program: CompiledText, executed: Sequence[Executed], kinds: Sequence[str]) -> list[int | None]:
    """The layer that each instruction belongs to, None if to no layer.

    A layer ends with the last product that reads a matrix of its own, and begins after the layer before it. What is
    launched between the program's beginning and the first product of all belongs to no layer.
    """
    found: list[int | None] = [None] * len(executed)
    before: int | None = None  # the last product's place
    for at, (one, kind) in enumerate(zip(executed, kinds, strict=True)):
        layer = _layer_of(program, one) if kind == PRODUCT else None
        if layer is not None:
            first = at if before is None else before + 1
            found[first : at + 1] = [layer] * (at + 1 - first)
            before = at
    return found


def _layer_of(program: CompiledText, product: Executed) -> int | None:
    """The layer whose matrix a product reads."""

    def follow(operation: Operation) -> bool:
        return _kind(program, operation) == MOVE

    for operand in product.operation.operands:
        if layer := _LAYER_MATRIX.match(program.argument(product.scope, operand, follow) or ""):
            return int(layer[1])
    return None


def _move(program: CompiledText, one: Executed, in_a_layer: bool) -> DataMove:
    made = one.operation.made
    inner = {part.made.opcode for part in program.fused(one.operation)} or {made.opcode.removesuffix("-start")}

    def follow(operation: Operation) -> bool:
        return _kind(program, operation) == MOVE

    sources = (program.argument(one.scope, operand, follow) for operand in one.operation.operands)
    known = [name for name in sources if name and name.startswith(("parameters[", "state.pool"))]
    argument = known[0] if known else ""
    kind = next((told for told in _TOLD if told in inner), "copy")
    moved = POOL if argument.startswith("state.pool") else WEIGHTS if argument else ROWS
    name = argument.removeprefix("parameters['").removesuffix("']")
    shapes = tuple(map(str, made.shapes))
    return DataMove(kind, moved, name, shapes, made.nbytes, one.times, in_a_layer)


def _sent(program: CompiledText, executed: Iterable[Executed], kinds: Iterable[str]) -> tuple[SentArray, ...]:
    found: dict[tuple[str, tuple[str, ...], int], list[tuple[Executed, set[str]]]] = {}
    for one, kind in zip(executed, kinds, strict=True):
        if kind == COLLECTIVE:
            made = one.operation.made
            key = made.opcode.removesuffix("-start"), tuple(map(str, made.shapes)), made.nbytes
            # collectives wait for one another
            beside = {_kind(program, other) for other in program.beside(one)} - {COLLECTIVE}
            found.setdefault(key, []).append((one, beside))
    return tuple(
        SentArray(
            *key,
            times=_runs(one for one, _ in equal),
            beside_products=_runs(one for one, beside in equal if PRODUCT in beside),
            beside_nothing=_runs(one for one, beside in equal if not beside),
        )
        for key, equal in found.items()
    )


def _runs(executed: Iterable[Executed]) -> int | None:
    """Runs of all of them in one run of the program; None if unknown."""
    times = [one.times for one in executed]
    known = [number for number in times if number is not None]
    return sum(known) if len(known) == len(times) else None
