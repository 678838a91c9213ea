"""Before a runtime opens: the sizes of its model; and where its start is reported."""

from __future__ import annotations

import contextlib
import sys

from medha_jax.cli.option_groups import refusal
from medha_jax.config import RuntimeConfig


def tell(line: str) -> None:
    """Print a step of the start to stderr. That nobody reads it ends no work."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def model_sizes(config: RuntimeConfig) -> tuple[int, int]:
    """Vocabulary entries of the model, and the configured context in tokens; loads nothing.

    Raises:
        UnsupportedModelError: the architecture or one of its settings is not supported.
        typer.BadParameter: the configured context is longer than the model's.
    """
    from medha_jax.specs.model import Architecture

    arch = Architecture.from_directory(config.model)
    context, max_context = arch.context, config.max_context
    if max_context is not None and max_context > context:
        why = f"{max_context:,} is more than the model's context; allowed are 1 to {context:,} tokens"
        raise refusal("--max-context", why)
    return arch.vocab, max_context or context
