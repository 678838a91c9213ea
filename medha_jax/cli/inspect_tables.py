"""Tables that `medha-jax inspect` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medha_jax.cli.printing import print_line, print_table
from medha_jax.results import Table

if TYPE_CHECKING:
    from medha_jax.inspection import BucketReport, LayoutReport, Traffic

WIDTH = 120  # of output to a file or pipe
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def print_report(report: LayoutReport) -> None:
    """Print a report to standard output."""
    print_table(_layout(report), width=WIDTH)
    for bucket in report.buckets:
        rows = len(bucket.collectives)
        print_table(_bucket(bucket), width=WIDTH, bold=range(rows, rows + len(bucket.bytes_by_axis)))
        for line in _notes(bucket):
            print_line(f"  {line}", wrap=True, width=WIDTH)
        print_line()
    print_line(
        f"Read from programs compiled by {report.compiler}. Bytes are of the result on one device, in the element type "
        "that the program is written in; where the compiler carries a wider one, its bytes stand behind.",
        wrap=True,
        width=WIDTH,
    )


def size(nbytes: float) -> str:
    """Bytes as text, e.g. `19.0 KiB` for 19,456."""
    unit = 0
    while nbytes >= 1024 and unit < len(UNITS) - 1:
        nbytes, unit = nbytes / 1024, unit + 1
    return f"{nbytes:,.1f} {UNITS[unit]}" if unit else f"{nbytes:,.0f} B"


def known_size(nbytes: float | None, otherwise: str = "unknown") -> str:
    """Bytes as text, if they are known."""
    return otherwise if nbytes is None else size(nbytes)


def several(count: int, what: str) -> str:
    """A number of things, e.g. `2 layers`."""
    return f"{count} {what}{'s' * (count != 1)}"


def _layout(report: LayoutReport) -> Table:
    axes = ", ".join(f"{name}={count}" for name, count in report.axes.items())
    title = f"{report.family}, {report.layers} layers, {report.dtype}, on {report.devices} devices: {axes}"
    longest = "unknown" if report.longest_context is None else f"{report.longest_context:,} tokens"
    per_token = f"{report.kv_bytes_per_token:,} of {report.model_kv_bytes_per_token:,} B"
    rows = (
        ("parameters", f"{report.device_parameters:,} of {report.parameters:,}"),
        ("weights", size(report.weight_bytes)),
        (f"KV pool of {report.pool_tokens:,} tokens", size(report.pool_bytes)),
        ("stage register", size(report.register_bytes)),
        ("rows held between slices", size(report.held_bytes)),
        ("page table", size(report.table_bytes)),
        ("sampler state", size(report.sampler_bytes)),
        ("all that is kept, of usable memory", f"{size(report.total_bytes)} of {known_size(report.usable_bytes)}"),
        ("KV of one token, of all devices'", per_token),
        ("context of one request as configured", f"{report.context:,} tokens"),
        ("longest context that would fit", longest),
        ("attention, a row and token of its context", f"{report.attention_flops:,} FLOP"),
    )
    return Table(title, ("on one device", ""), rows)


def _bucket(bucket: BucketReport) -> Table:
    shared = f", {bucket.shared_rows} of them shared" if bucket.shared_rows else ""
    kind, layers = "tick", ""
    if bucket.slice_layers is not None:
        kind, layers = "slice", f", {several(bucket.slice_layers, 'layer')}"
    title = f"{kind} {bucket.bucket}: {bucket.rows} rows{shared}{layers}"
    rows = [_collective(one) for one in bucket.collectives]
    rows += [(axis, "all", "", "", "", size(nbytes)) for axis, nbytes in bucket.bytes_by_axis.items()]
    columns = ("axis", "collective", "result", "bytes", f"a {kind}", f"bytes a {kind}")
    return Table(title, columns, tuple(rows), words=3)


def _collective(one: Traffic) -> tuple[str, ...]:
    wider = f" ({size(one.compiled_nbytes)})" if one.compiled_nbytes != one.nbytes else ""
    most = "at most " if one.conditional else ""
    count = "unknown" if one.count is None else f"{most}{one.count}"
    total = known_size(None if one.count is None else one.count * one.nbytes)
    return one.axis or "none", one.kind, ", ".join(one.shapes), f"{size(one.nbytes)}{wider}", count, total


def _notes(bucket: BucketReport) -> list[str]:
    found = f"{bucket.pool_copies} COPIES of the pool" if bucket.pool_copies else "no copy of the pool"
    flops = "unknown" if bucket.program_flops is None else f"{bucket.program_flops:.3g}"
    lines = [
        f"matrix products (counted from the sizes, without attention): {bucket.matmul_flops:.3g} FLOP",
        f"compiler's estimate (loop bodies counted once): {flops} FLOP, {known_size(bucket.program_bytes)} accessed",
        f"{found}; temporary memory {known_size(bucket.temporary_bytes)}; compiled in {bucket.compile_seconds:.1f} s",
    ]
    if bucket.pool_conversions:
        lines.append(
            f"this compiler lacks the element type: it converts the pool in {bucket.pool_conversions} places, which "
            "other copies and most temporary memory come from; compare --dtype float32"
        )
    if bucket.uncounted:
        lines.append(f"{bucket.uncounted} collectives could not be counted: unknown trip count or axis")
    return lines
