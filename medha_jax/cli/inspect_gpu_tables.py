"""Tables that `medha-jax inspect --target GPU` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from medha_jax.cli.inspect_tables import WIDTH, known_size, several, size
from medha_jax.cli.printing import print_line, print_table
from medha_jax.results import Table

if TYPE_CHECKING:
    from medha_jax.inspection import GpuProgramReport, GpuReport

SHOWN = 2**20  # bytes of a run from which a move outside of the layers is shown; all of weights and pool are


def print_gpu_report(report: GpuReport) -> None:
    """Print a report to standard output."""
    print_table(_kept(report), width=WIDTH)
    for program in report.programs:
        print_table(_kernels(program), width=WIDTH)
        if moves := _moves(program):
            print_table(moves, width=WIDTH)
        for line in _notes(program):
            print_line(f"  {line}", wrap=True, width=WIDTH)
        print_line()
    print_line(
        f"Read from programs that {report.compiler}, made for {report.device} without one. They show what is launched, "
        "recorded and moved, not how long it takes; a GPU may choose other algorithms for matrix products.",
        wrap=True,
        width=WIDTH,
    )


def _kept(report: GpuReport) -> Table:
    devices = f"{report.devices} x {report.device}"
    title = f"{report.family}, {report.layers} layers, {report.dtype}, on {devices}"
    rows = (
        ("attention", report.attention),
        ("weights", size(report.weight_bytes)),
        ("KV pool", size(report.pool_bytes)),
        ("all that is kept, of usable memory", f"{size(report.kept_bytes)} of {known_size(report.usable_bytes)}"),
    )
    return Table(title, ("on one device", ""), rows)


def _kernels(program: GpuProgramReport) -> Table:
    kind = "tick" if program.slice_layers is None else f"slice of {several(program.slice_layers, 'layer')}"
    title = f"{kind} {program.bucket}: {program.rows} rows"
    step = f"in one of {several(program.steps, 'layer')}"
    rows = [(one.kind, str(one.in_a_layer), str(one.outside)) for one in program.kernels]
    inside, outside = (sum(getattr(one, name) for one in program.kernels) for name in ("in_a_layer", "outside"))
    rows.append(("all", str(inside), str(outside)))
    return Table(title, ("launched", step, "besides, some of them not in every run"), tuple(rows))


def _moves(program: GpuProgramReport) -> Table | None:
    shown = [
        (
            "in a layer" if one.in_a_layer else "once" if one.times == 1 else "in a loop",
            one.kind,
            f"{one.moved}: {one.argument}" if one.argument else one.moved,
            ", ".join(one.result),
            size(one.nbytes),
            known_size(None if one.times is None else one.nbytes * one.times),
        )
        for one in program.moves
        if one.argument or one.in_a_layer or one.nbytes >= SHOWN
    ]
    columns = ("when", "moved by", "what", "result", "bytes", "bytes a run")
    return Table("", columns, tuple(shown), words=4) if shown else None


def _notes(program: GpuProgramReport) -> Iterator[str]:
    if program.error is not None:
        yield f"XLA did not finish this program: {program.error}"
        yield f"not seen: {', '.join(program.unseen)}"
    if program.buffers is not None:
        found = program.buffers
        launches = "unknown" if found.launches is None else f"{found.launches:,}"
        yield (
            f"{several(found.buffers, 'command buffer')} with {several(found.recorded, 'operation')}, launched "
            f"{launches} times a run; {len(found.loose) or 'nothing'} outside{':' if found.loose else ''}"
        )
        for one in found.loose:
            why = f": {one.why}" if one.why else ""
            yield f"- {one.kind} {one.name}, {_times(one.times)}{why}"
        for note in found.notes:
            yield f"XLA: {note}"
    products = f", {program.repeated_products} of them matrix products" if program.repeated_products else ""
    again = ", ".join(program.repeated) or "nothing"
    yield f"computed again to save memory: {again}{products}"
    for sent in program.sent:
        beside = f"{_of(sent.beside_products)} beside matrix products, {_of(sent.beside_nothing)} beside nothing"
        yield f"{sent.kind} {', '.join(sent.result)}, {size(sent.nbytes)}, {_times(sent.times)}: {beside}"
    pool = "the pool stays in its memory" if program.pool_aliased else "THE POOL IS NOT DONATED: there are two"
    temporary = known_size(program.temporary_bytes, "not seen")
    yield f"{pool}; temporary memory {temporary}; compiled in {program.compile_seconds:.1f} s"


def _times(times: int | None) -> str:
    return "unknown times" if times is None else "once" if times == 1 else f"{times} times"


def _of(count: int | None) -> str:
    return "an unknown number" if count is None else f"{count:,}" if count else "none"
