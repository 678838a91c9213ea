"""The tables that `medha-jax inspect` prints for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from medha_jax.inspection import BucketReport, LayoutReport, Traffic

WIDTH = 120  # of output that is no terminal
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def print_report(report: LayoutReport) -> None:
    """Print a report to standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(_layout(report))
    for bucket in report.buckets:
        console.print(_bucket(bucket))
        for line in _notes(bucket):
            console.print(f"  {line}")
        console.print()
    console.print(
        f"Read from programs compiled by {report.compiler}. Bytes are of the result on one device, in the element type "
        "that the tick is written in; where the compiler carries a wider one, its bytes stand behind."
    )


def size(nbytes: float) -> str:
    """Bytes in words, e.g. 19,456 are `19.0 KiB`."""
    unit = 0
    while nbytes >= 1024 and unit < len(UNITS) - 1:
        nbytes, unit = nbytes / 1024, unit + 1
    return f"{nbytes:,.1f} {UNITS[unit]}" if unit else f"{nbytes:,.0f} B"


def _layout(report: LayoutReport) -> Table:
    axes = ", ".join(f"{name}={count}" for name, count in report.axes.items())
    table = Table(title=f"{report.family}, {report.layers} layers, {report.dtype}, on {report.devices} devices: {axes}")
    table.add_column("on one device")
    table.add_column("", justify="right")
    table.add_row("parameters", f"{report.device_parameters:,} of {report.parameters:,}")
    parts = {
        "weights": report.weight_bytes,
        f"KV pool of {report.pool_tokens:,} tokens": report.pool_bytes,
        "stage register": report.register_bytes,
        "page table": report.table_bytes,
        "sampler state": report.sampler_bytes,
    }
    for name, nbytes in parts.items():
        table.add_row(name, size(nbytes))
    usable = "unknown" if report.usable_bytes is None else size(report.usable_bytes)
    table.add_row("all that is kept, of usable memory", f"{size(report.total_bytes)} of {usable}")
    per_token = f"{report.kv_bytes_per_token:,} of {report.model_kv_bytes_per_token:,} B"
    table.add_row("KV of one token, of all devices'", per_token)
    table.add_row("context of one request as configured", f"{report.context:,} tokens")
    longest = "unknown" if report.longest_context is None else f"{report.longest_context:,} tokens"
    table.add_row("longest context that would fit", longest)
    table.add_row("attention, a row and token of its context", f"{report.attention_flops:,} FLOP")
    return table


def _bucket(bucket: BucketReport) -> Table:
    shared = f", {bucket.shared_rows} of them shared" if bucket.shared_rows else ""
    table = Table(title=f"tick {bucket.bucket}: {bucket.rows} rows{shared}", title_justify="left")
    for name in ("axis", "collective", "result"):
        table.add_column(name)
    for name in ("bytes", "a tick", "bytes a tick"):
        table.add_column(name, justify="right")
    for collective in bucket.collectives:
        table.add_row(*_collective(collective))
    for axis, nbytes in bucket.bytes_by_axis.items():
        table.add_row(f"[bold]{axis}[/bold]", "all", "", "", "", f"[bold]{size(nbytes)}[/bold]")
    return table


def _collective(one: Traffic) -> tuple[str, ...]:
    wider = f" ({size(one.compiled_nbytes)})" if one.compiled_nbytes != one.nbytes else ""
    most = "at most " if one.conditional else ""
    count = "unknown" if one.count is None else f"{most}{one.count}"
    total = "unknown" if one.count is None else size(one.count * one.nbytes)
    # brackets would be markup
    result = ", ".join(one.shapes).replace("[", r"\[")
    return one.axis or "none", one.kind, result, f"{size(one.nbytes)}{wider}", count, total


def _notes(bucket: BucketReport) -> list[str]:
    found = f"{bucket.pool_copies} COPIES of the pool" if bucket.pool_copies else "no copy of the pool"
    temporary = "unknown" if bucket.temporary_bytes is None else size(bucket.temporary_bytes)
    flops = "unknown" if bucket.program_flops is None else f"{bucket.program_flops:.3g}"
    accessed = "unknown" if bucket.program_bytes is None else size(bucket.program_bytes)
    lines = [
        f"matrix products (counted from the sizes, without attention): {bucket.matmul_flops:.3g} FLOP",
        f"compiler's estimate (loop bodies counted once): {flops} FLOP, {accessed} accessed",
        f"{found}; temporary memory {temporary}; compiled in {bucket.compile_seconds:.1f} s",
    ]
    if bucket.pool_conversions:
        lines.append(
            f"this compiler lacks the element type: it converts the pool in {bucket.pool_conversions} places, which "
            "other copies and most temporary memory come from; compare --dtype float32"
        )
    if bucket.uncounted:
        lines.append(f"{bucket.uncounted} collectives could not be counted: unknown trip count or axis")
    return lines
