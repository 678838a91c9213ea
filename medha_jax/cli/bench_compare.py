"""`medha-jax bench compare`: results of several directories side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medha_jax.cli.opening import tell
from medha_jax.cli.standard_streams import print_result


def bench_compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Written with --out, or above such ones.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write a report of all there.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show several runs side by side; ratios are to the first."""
    from medha_jax.cli.bench_tables import print_runs
    from medha_jax.results import read_runs, runs_json, write_report

    runs = read_runs(directories)
    print_result(json, lambda: runs_json(runs), lambda: print_runs(runs))
    if out is not None:
        tell(f"wrote {write_report(out, runs, 'medha-jax bench compare')}")
