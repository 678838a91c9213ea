"""Reads what a compiled program runs: its computations, how often each instruction runs, and where operands come from.

No JAX.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import dropwhile

from medha_jax.inspection.hlo import HloError, Instruction, is_instruction, split_instruction

# of no work on the device; the end of an asynchronous pair is counted by its beginning
FREE = frozenset({"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier"})

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERAND = re.compile(r"%([\w.\-]+)(?:#(\d+))?")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation|branch_computations|called_computations)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_ALIAS = re.compile(r"\{[\d, ]*\}: \((\d+), \{\}")
_ENDS = re.compile(r"(?:async|copy|all-reduce|all-gather|collective-permute)-(?:done|update)")
_INNER = {"call", "async-start", "conditional"}
_DEPTH = 64  # of a chain of operands that is followed


@dataclass(frozen=True)
class Operand:
    """An operand: the instruction that makes it, and which element of its result if that is a tuple."""

    name: str
    element: int | None = None


@dataclass(frozen=True)
class Operation:
    """One instruction with its operands, and the text of operands and attributes."""

    made: Instruction
    operands: tuple[Operand, ...]
    text: str

    def called(self, *attributes: str) -> tuple[str, ...]:
        """Names of the computations in these attributes, or in any."""
        found = [one for one in _CALLED.finditer(self.text) if not attributes or one[1] in attributes]
        return tuple(name.strip().lstrip("%") for one in found for name in (one[2] or one[3]).split(","))

    @property
    def trips(self) -> int | None:
        """Times that a loop's body runs, if the compiler knows."""
        known = _TRIPS.search(self.text)
        return int(known[1]) if known else None

    @property
    def op_name(self) -> str:
        """Where it comes from in the traced program; of a parameter the argument's name, e.g. `state.pool`."""
        found = _OP_NAME.search(self.text)
        return found[1].replace("\\'", "'") if found else ""


Follow = Callable[[Operation], bool]


@dataclass(frozen=True)
class Scope:
    """A computation at one place where it is called."""

    computation: str
    caller: Operation | None = None
    outer: Scope | None = None


@dataclass(frozen=True)
class Executed:
    """An instruction that runs, outside of fusions.

    Args:
        times: runs in one run of the program; None if a loop's trip count is unknown, at most so many if
            `conditional`.
        loop: the outermost loop around it.
    """

    operation: Operation
    scope: Scope
    times: int | None
    conditional: bool
    loop: str | None


@dataclass(frozen=True)
class CompiledText:
    """A compiled program's text, by computation."""

    header: str
    entry: str
    computations: Mapping[str, Mapping[str, Operation]]

    @classmethod
    def parse(cls, text: str) -> CompiledText:
        """Read the text of a compiled program.

        Raises:
            HloError: the text has no entry computation, or a line has an unknown form.
        """
        computations: dict[str, dict[str, Operation]] = {}
        entry, inside = "", dict[str, Operation]()
        lines = text.splitlines()
        for line in lines:
            if is_instruction(line):
                operation = _operation(line)
                inside[operation.made.name] = operation
            elif head := _COMPUTATION.match(line):
                inside = computations[head[2]] = {}
                entry = head[2] if head[1] else entry
        if not entry:
            raise HloError("the text has no ENTRY computation; give the HLO text of a compiled program")
        return cls(lines[0], entry, computations)

    def executed(self) -> Iterator[Executed]:
        """Every instruction that does work on a device, with loops, branches and calls followed."""
        yield from self._executed(Scope(self.entry), 1, False, None)

    def _executed(self, scope: Scope, times: int | None, conditional: bool, loop: str | None) -> Iterator[Executed]:
        for one in self.computations[scope.computation].values():
            opcode = one.made.opcode
            if opcode in FREE or _ENDS.fullmatch(opcode):
                continue
            if opcode == "while":
                runs = None if times is None or one.trips is None else times * one.trips
                for name in one.called("condition", "body"):
                    inner = Scope(name, one, scope)
                    yield from self._executed(inner, runs, conditional, loop or one.made.name)
            elif opcode in _INNER:
                for name in one.called():
                    inner = Scope(name, one, scope)
                    yield from self._executed(inner, times, conditional or opcode == "conditional", loop)
            else:
                yield Executed(one, scope, times, conditional, loop)

    def fused(self, operation: Operation) -> tuple[Operation, ...]:
        """The instructions inside a fusion, those of inner computations included."""
        inner = [one for name in operation.called("calls") for one in self.computations.get(name, {}).values()]
        return tuple(all_ for one in inner for all_ in (one, *self.fused(one)))

    def beside(self, one: Executed) -> tuple[Operation, ...]:
        """What is begun after an asynchronous instruction and before its end is awaited; nothing for any other one."""
        begin, scope = one.operation, one.scope
        if scope.outer is not None and scope.caller is not None and scope.caller.made.opcode == "async-start":
            begin, scope = scope.caller, scope.outer
        if not begin.made.opcode.endswith("-start"):
            return ()
        found: list[Operation] = []
        inside = iter(self.computations[scope.computation].values())
        for operation in dropwhile(lambda other: other is not begin, inside):
            opcode = operation.made.opcode
            if opcode.endswith("-done") and operation.operands[0].name == begin.made.name:
                break
            if operation is begin or opcode in FREE or _ENDS.fullmatch(opcode):
                continue
            inner = operation.called() if opcode == "async-start" else ()
            wrapped = [part for name in inner for part in self.computations[name].values()]
            found += [part for part in wrapped if part.made.opcode not in FREE] or [operation]
        return tuple(found)

    def argument(self, scope: Scope, operand: Operand, follow: Follow, depth: int = 0) -> str | None:
        """Name of the program's argument that an operand is, or is made of by instructions to `follow`; else None."""
        one = self.computations[scope.computation].get(operand.name)
        if one is None or depth > _DEPTH:
            return None
        element, opcode = operand.element, one.made.opcode
        if opcode == "get-tuple-element":
            index = re.search(r"index=(\d+)", one.text)
            inner = Operand(one.operands[0].name, int(index[1]) if index else None)
            return self.argument(scope, inner, follow, depth + 1)
        if opcode == "parameter":
            return self._parameter(scope, one, element, follow, depth)
        if opcode == "tuple" and element is not None:
            return self.argument(scope, one.operands[element], follow, depth + 1)
        if opcode == "while" and one.operands:
            return self.argument(scope, Operand(one.operands[0].name, element), follow, depth + 1)
        if one.operands and (opcode in FREE or follow(one)):
            return self.argument(scope, one.operands[0], follow, depth + 1)
        return None

    def _parameter(self, scope: Scope, one: Operation, element: int | None, follow: Follow, depth: int) -> str | None:
        if scope.outer is None or scope.caller is None:
            return one.op_name
        number, caller = int(one.text.split(")")[0]), scope.caller
        # branches have operands of their own behind the condition
        if caller.made.opcode == "conditional" or number >= len(caller.operands):
            return None
        given = caller.operands[number]
        inner = Operand(given.name, given.element if element is None else element)
        return self.argument(scope.outer, inner, follow, depth + 1)

    @property
    def aliased(self) -> frozenset[str]:
        """Names of the arguments whose memory a result takes over."""
        numbers = {found[1] for found in _ALIAS.finditer(self.header.partition("entry_computation_layout")[0])}
        entry = self.computations[self.entry].values()
        arguments = (one for one in entry if one.made.opcode == "parameter")
        return frozenset(one.op_name for one in arguments if one.text.split(")")[0] in numbers)


def _operation(line: str) -> Operation:
    made, text = split_instruction(line)
    depth, end = 1, len(text)
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            end = at
            break
    named = _OPERAND.finditer(text[:end])
    return Operation(made, tuple(Operand(one[1], int(one[2]) if one[2] else None) for one in named), text)
