"""`medha-jax convert`: rewrites a checkpoint so that it loads faster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from medha_jax.cli.interrupt import noted_interrupts
from medha_jax.cli.standard_streams import reader_may_leave


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A Hugging Face model directory.")],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", help="The directory to make; it must not exist, or be empty.")
    ],
    dtype: Annotated[
        str | None,
        typer.Option(metavar="bfloat16|float16|float32", help="Of the new weights. Default: as stored."),
    ] = None,
) -> None:
    """Rewrite Hugging Face weights in the runtime's own format. DST appears complete or not at all."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from medha_jax.checkpoints import convert as convert_checkpoint

    console = Console(stderr=True)
    bar = Progress(
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        redirect_stdout=False,
        disable=not console.is_terminal,
    )
    with reader_may_leave(), noted_interrupts() as check, bar:
        task = bar.add_task("reading", total=None)

        def written(name: str, done: int, total: int) -> None:
            check()
            bar.update(task, completed=done, total=total, description=name)

        report = convert_checkpoint(source, destination, dtype=dtype, on_progress=written)
        bar.stop()
        for note in report.notes:
            print(f"warning: {note}", file=sys.stderr)
        size = f"{report.parameters} arrays, {report.nbytes:,} bytes, {report.dtype}"
        print(f"{report.destination}: {size}", file=sys.stderr)
