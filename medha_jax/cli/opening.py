"""Opens a runtime for a command, and reports its start."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import typer

from medha_jax.config import RuntimeConfig

if TYPE_CHECKING:
    from medha_jax.engine import GenerationRequest
    from medha_jax.runtime import MeshExecutor
    from medha_jax.runtime.cluster import ClusterConfig, ClusterExecutor


def open_runtime(request: GenerationRequest, config: RuntimeConfig) -> MeshExecutor:
    """A runtime just large enough for the request; its start is reported on stderr."""
    from medha_jax.engine import sized_for
    from medha_jax.runtime import open_executor

    sized = sized_for(config, [request], _check(request, config))
    return open_executor(sized, tell)


def lead_runtime(request: GenerationRequest, config: RuntimeConfig, cluster: ClusterConfig) -> ClusterExecutor:
    """A runtime over all processes, with the sizes that all of them were started with."""
    from medha_jax.runtime.cluster import lead

    _check(request, config)
    return lead(config, cluster, tell)


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
        raise typer.BadParameter(
            f"{max_context:,} is more than the model's context; allowed are 1 to {context:,} tokens",
            param_hint="'--max-context'",
        )
    return arch.vocab, max_context or context


def _check(request: GenerationRequest, config: RuntimeConfig) -> int:
    """Check a request before anything is loaded; returns the context in tokens."""
    from medha_jax.engine import check_request

    vocab, context = model_sizes(config)
    check_request(request, vocab, context)
    return context
