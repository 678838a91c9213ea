"""The `medha-jax` command. Only the commands that compute import JAX, so `--help` is quick."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import medha_jax
from medha_jax.cli.bench import bench
from medha_jax.cli.convert import convert
from medha_jax.cli.exit_codes import BAD_INPUT, FAILED, INTERRUPTED
from medha_jax.cli.generate import generate
from medha_jax.cli.inspect import inspect
from medha_jax.cli.interrupt import leave_on_interrupt
from medha_jax.cli.plan import plan
from medha_jax.cli.serve import serve
from medha_jax.cli.simulate import simulate
from medha_jax.cli.standard_streams import open_closed_streams, written_out
from medha_jax.cli.worker import worker

# ClickException is click's in older releases of typer, and a copy of it in newer ones.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

# Rich tracebacks would print local variables, such as prompts and weights.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
app.command()(generate)
app.command()(serve)
app.command()(convert)
app.command()(worker)
app.command()(inspect)
app.command()(plan)
app.add_typer(simulate, name="simulate")
app.add_typer(bench, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"medha-jax {medha_jax.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A long-context LLM serving runtime in JAX."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns its exit code (`exit_codes`)."""
    try:
        code = app(args=list(arguments) or ["--help"], prog_name="medha-jax", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except _UsageError as error:
        return _report(str(getattr(error, "format_message", error.__str__)()), BAD_INPUT)
    except OSError as error:
        return _report(str(error), FAILED)
    except (ValueError, RuntimeError, MemoryError) as error:
        # The package's own errors are meant for users, also those that tell of a server's full queue.
        if type(error).__module__.startswith("medha_jax."):
            return _report(str(error), BAD_INPUT if isinstance(error, ValueError) else FAILED)
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            advice = "give a smaller --max-context or --max-tokens, or a shorter prompt"
            return _report(f"out of memory: {error}; {advice}", FAILED)
        raise  # any other error is a defect and keeps its traceback
    return code if isinstance(code, int) else 0


def _report(message: str, code: int) -> int:
    """Print `error: …` as one line on stderr."""
    print("error:", " ".join(line.strip() for line in message.splitlines()), file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the `medha-jax` script."""
    open_closed_streams()
    leave_on_interrupt()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? for characters it lacks
    code = run(sys.argv[1:])
    lost = written_out()
    if lost is not None and not code:
        code = _report(str(lost), FAILED)
    sys.exit(code)
