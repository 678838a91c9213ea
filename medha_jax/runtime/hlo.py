"""Reading a program in HLO text: its computations, how often each runs, and the collectives in them. No JAX."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from medha_jax.runtime.hlo_text import Instruction, Shape, attribute, called, computations, device_count, device_groups

KINDS = (
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


@dataclass(frozen=True)
class Collective:
    """One collective instruction, an asynchronous pair being one.

    Args:
        kind: HLO opcode without `-start`.
        shapes: of the result on one device.
        groups: devices that talk with one another; (source, target) pairs where `pairs` is set. Numbers are
            places in the device assignment.
        count: executions in one run of the program, None where a loop around it has no known trip count.
        conditional: a branch that need not be taken holds it; `count` is then the most.
    """

    kind: str
    shapes: tuple[Shape, ...]
    groups: tuple[tuple[int, ...], ...]
    pairs: bool
    count: int | None
    conditional: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the result of one execution on one device."""
        return sum(shape.nbytes for shape in self.shapes)

    @property
    def elements(self) -> int:
        """Elements of the result of one execution on one device."""
        return sum(shape.elements for shape in self.shapes)


@dataclass(frozen=True)
class Site:
    """How often a computation runs: None is unknown; `conditional` makes it the most."""

    count: int | None
    conditional: bool


@dataclass(frozen=True)
class Program:
    """A parsed module: computations by name, the one that is run, devices it is made for."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str
    devices: int

    @classmethod
    def parse(cls, text: str) -> Program:
        """Read HLO text, as `compiled.as_text()` gives it.

        Raises:
            HloError: it has no entry computation, or a part cannot be read.
        """
        found, entry = computations(text)
        return cls(found, entry, device_count(text))

    @cached_property
    def collectives(self) -> tuple[Collective, ...]:
        """Every collective that can run, in the order of the text, once for each way to reach it."""
        found = []
        for computation, sites in self._sites.items():
            for instruction in self.computations[computation]:
                kind = instruction.opcode.removesuffix("-start")
                if kind not in KINDS:
                    continue
                pairs, groups = device_groups(instruction.attributes, self.devices)
                shapes = self._result(computation, instruction)
                found += [Collective(kind, shapes, groups, pairs, s.count, s.conditional) for s in sites]
        return tuple(found)

    def making(self, opcodes: tuple[str, ...], elements: int) -> tuple[Instruction, ...]:
        """Instructions of these opcodes, such as COPIES, whose result has so many elements, wherever they stand."""
        return tuple(
            instruction
            for instructions in self.computations.values()
            for instruction in instructions
            if instruction.opcode in opcodes and any(shape.elements == elements for shape in instruction.shapes)
        )

    def trip_count(self, computation: str, loop: Instruction) -> int | None:
        """Iterations of a `while`, from what the compiler noted or from its condition; None if they depend on data."""
        if noted := re.search(r'"?known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes):
            return int(noted[1])
        return self._counted(computation, loop)

    @cached_property
    def _sites(self) -> dict[str, list[Site]]:
        sites: dict[str, list[Site]] = {name: [] for name in self.computations}

        def visit(name: str, site: Site) -> None:
            sites[name].append(site)
            for callee, inner in self._calls(name, site):
                visit(callee, inner)

        visit(self.entry, Site(1, False))
        return sites

    def _calls(self, name: str, site: Site) -> Iterator[tuple[str, Site]]:
        for instruction in self.computations[name]:
            if instruction.opcode in ("async-update", "async-done"):
                continue  # the start has called it
            names = called(instruction.attributes)
            if not any(callee in self._holding for callee in names):
                continue
            if instruction.opcode == "while":
                trips = self.trip_count(name, instruction)
                counts = {"body": trips, "condition": None if trips is None else trips + 1}
                for part, times in counts.items():
                    callee = attribute(instruction.attributes, part)
                    if callee in self._holding:
                        count = None if site.count is None or times is None else site.count * times
                        yield callee, Site(count, site.conditional)
                continue
            conditional = site.conditional or instruction.opcode == "conditional"
            yield from ((callee, Site(site.count, conditional)) for callee in names if callee in self._holding)

    @cached_property
    def _holding(self) -> set[str]:
        """Computations with a collective, or that call one with a collective; the others need no visit."""
        callers: dict[str, set[str]] = {name: set() for name in self.computations}
        for name, instructions in self.computations.items():
            for instruction in instructions:
                for callee in called(instruction.attributes):
                    callers.setdefault(callee, set()).add(name)
        holding: set[str] = set()
        open_ = [
            name
            for name, instructions in self.computations.items()
            if any(instruction.opcode.removesuffix("-start") in KINDS for instruction in instructions)
        ]
        while open_:
            name = open_.pop()
            if name not in holding:
                holding.add(name)
                open_ += callers[name]
        return holding

    def _result(self, computation: str, start: Instruction) -> tuple[Shape, ...]:
        """Shapes of the result; a start's own shape also lists what it was given."""
        if not start.opcode.endswith("-start"):
            return start.shapes
        for done in self.computations[computation]:
            if done.opcode.endswith("-done") and start.name in done.operands:
                return done.shapes
        return start.shapes

    def _counted(self, computation: str, loop: Instruction) -> int | None:
        """Trip count of `for (i = first; i < last; i += step)`."""
        condition = self._by_name(attribute(loop.attributes, "condition"))
        body = self._by_name(attribute(loop.attributes, "body"))
        here = self._by_name(computation)
        test, after = _root(condition), _root(body)
        given = here.get(loop.operands[0]) if loop.operands else None
        if (
            not test
            or not after
            or not given
            or (test.opcode, after.opcode, given.opcode) != ("compare", *["tuple"] * 2)
        ):
            return None
        if "direction=LT" not in test.attributes:
            return None
        counter, last = (condition.get(name) for name in test.operands)
        end = _integer(last)
        if not counter or counter.opcode != "get-tuple-element" or end is None:
            return None
        index = int(attribute(counter.attributes, "index") or 0)
        first, new = _integer(here.get(given.operands[index])), body.get(after.operands[index])
        if first is None or not new or new.opcode != "add":
            return None
        terms = [body.get(name) for name in new.operands]
        steps = [step for term in terms if (step := _integer(term)) is not None]
        kept = [
            t for t in terms if t and t.opcode == "get-tuple-element" and attribute(t.attributes, "index") == str(index)
        ]
        if len(steps) != 1 or len(kept) != 1 or steps[0] < 1:
            return None
        return max(0, math.ceil((end - first) / steps[0]))

    def _by_name(self, computation: str | None) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.computations.get(computation or "", ())}


def _root(instructions: Mapping[str, Instruction]) -> Instruction | None:
    return next((instruction for instruction in instructions.values() if instruction.root), None)


def _integer(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant" or not instruction.operands:
        return None
    stated = instruction.operands[0]
    return int(stated) if re.fullmatch(r"-?\d+", stated) else None
