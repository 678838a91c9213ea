"""`medha-jax bench compare`: results of several directories side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medha_jax.cli.opening import tell
from medha_jax.cli.report import reader_may_leave

if TYPE_CHECKING:
    from medha_jax.results import Run


def bench_compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Written with --out, or above such ones.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write a report of all there.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show several runs side by side; ratios are to the first."""
    runs = found_runs(directories)
    with reader_may_leave():
        if json:
            from medha_jax.results import runs_json

            print(runs_json(runs), flush=True)
        else:
            from medha_jax.cli.bench_tables import print_runs

            print_runs(runs)
    if out is not None:
        from medha_jax.results import write_report

        tell(f"wrote {write_report(out, runs, 'medha-jax bench compare')}")


def found_runs(directories: Sequence[Path]) -> list[Run]:
    """The runs of directories, or of the folders in them; those of one name are told apart by their directories.

    Raises:
        ResultsError: a directory holds none.
    """
    from medha_jax.results import read_run

    found: list[tuple[Path, Run]] = []
    for directory in directories:
        inner = sorted(summary.parent for summary in directory.glob("*/summary.json"))
        if inner and not (directory / "summary.json").exists():
            found += [(folder, read_run(folder)) for folder in inner]
        else:
            found.append((directory, read_run(directory)))
    names = [run.name for _, run in found]
    return [
        run if names.count(run.name) == 1 else dataclasses.replace(run, name=f"{run.name} ({folder.name})")
        for folder, run in found
    ]
