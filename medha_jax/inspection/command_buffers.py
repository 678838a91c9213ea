"""What XLA records in command buffers (CUDA graphs), and what the host launches one by one. No JAX.

Read from the text of a program's thunks, which XLA writes after it has made command buffers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

_THUNK = re.compile(r"( *)(\d+): (k\w+)\s+\[[^\]]*\] ?(.*)")
_KERNEL = re.compile(r"(\S+) grid:")
_INFO = re.compile(r'thunk_info \{\s*(?:profile_annotation: "([^"]*)"\s*)?(?:thunk_id: (\d+)\s*)?')
_NOTE = re.compile(r"command_buffer_conversion_pass\.cc:\d+\] (.*)")
_GRAPH, _LOOP, _CALL, _WAITS = "kCommandBuffer", "kWhile", "kCustomCall", ("kAsyncDone",)
_SILENT = ("Module ", "Creating command buffer")
LEGACY = "a custom call of XLA's older interface, which is recorded nowhere"


@dataclass(frozen=True)
class LooseThunk:
    """Something that the host launches by itself.

    Args:
        kind: as XLA names it, e.g. `kCustomCall`; `kWhile` and `kConditional` are launched step by step.
        name: of the instruction.
        times: launches in one run of the program; None if unknown.
        why: what is known about it, beside XLA's own words in `CommandBuffers.notes`.
    """

    kind: str
    name: str
    times: int | None
    why: str


@dataclass(frozen=True)
class CommandBuffers:
    """The command buffers of one program.

    Args:
        buffers: how many there are; `launches` is how often they are launched in one run, None if unknown.
        recorded: operations in them.
        loose: what is left outside.
        notes: XLA's reasons, with how often it gave each.
    """

    buffers: int
    launches: int | None
    recorded: int
    loose: tuple[LooseThunk, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Thunk:
    indent: int
    number: int
    kind: str
    rest: str


def read_command_buffers(
    thunks: str, metadata: str, log: str, trips: Mapping[str, int | None], legacy_calls: Collection[str] = ()
) -> CommandBuffers:
    """Read the texts that XLA writes about one program.

    Args:
        thunks: `*.thunk_sequence_after_thunk_passes.txt`.
        metadata: `*.thunk_metadata.txt`, with names by number.
        log: what XLA logged, with its pass for command buffers at level 3.
        trips: steps of each loop by name.
        legacy_calls: custom calls of the older interface.
    """
    names = {int(found[2] or 0): found[1] or "" for found in _INFO.finditer(metadata)}
    buffers, recorded = 0, 0
    launches: int | None = 0
    loose = []
    for thunk, times, inside in _walk(thunks, names, trips):
        if thunk.kind == _GRAPH:
            buffers += 1
            launches = None if launches is None or times is None else launches + times
        elif inside:
            recorded += thunk.kind not in _WAITS
        elif thunk.kind not in _WAITS:
            name = _name(thunk, names)
            legacy = thunk.kind == _CALL and name in legacy_calls
            loose.append(LooseThunk(thunk.kind, name, times, LEGACY if legacy else ""))
    said = Counter(note for note in _NOTE.findall(log) if not note.startswith(_SILENT))
    notes = tuple(f"{note} ({count}x)" if count > 1 else note for note, count in said.items())
    return CommandBuffers(buffers, launches, recorded, tuple(loose), notes)


def _walk(
    text: str, names: Mapping[int, str], trips: Mapping[str, int | None]
) -> Iterator[tuple[_Thunk, int | None, bool]]:
    """Every thunk with its runs, and whether a command buffer has it."""
    around: list[tuple[int, int | None, bool]] = []  # indentation, runs of what is inside, recorded
    for line in text.splitlines():
        if (found := _THUNK.match(line)) is None:
            continue  # `body:`, `condition:`, the name of a branch
        thunk = _Thunk(len(found[1]), int(found[2]), found[3], found[4])
        while around and around[-1][0] >= thunk.indent:
            around.pop()
        times, inside = around[-1][1:] if around else (1, False)
        yield thunk, times, inside
        runs = times
        if thunk.kind == _LOOP:
            steps = trips.get(_name(thunk, names))
            runs = None if times is None or steps is None else times * steps
        around.append((thunk.indent, runs, inside or thunk.kind == _GRAPH))


def _name(thunk: _Thunk, names: Mapping[int, str]) -> str:
    kernel = _KERNEL.match(thunk.rest)
    return names.get(thunk.number) or (kernel[1] if kernel else thunk.rest.strip())
