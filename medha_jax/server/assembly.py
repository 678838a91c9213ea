"""Makes the arguments of `serve` from a model directory: the served model and its loader."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from medha_jax.chat import ChatTemplate, ChatTemplateError
from medha_jax.config import ModelDefaults, RuntimeConfig, SchedulerConfig
from medha_jax.engine import EngineLoader, ModelFiles
from medha_jax.server.request_parser import ServedModel

if TYPE_CHECKING:
    from medha_jax.runtime.cluster import ClusterConfig

logger = logging.getLogger(__name__)


def assemble(
    runtime: RuntimeConfig,
    scheduling: SchedulerConfig | None = None,
    *,
    name: str | None = None,
    cluster: ClusterConfig | None = None,
    clock: Callable[[], float] = time.perf_counter,
    tell: Callable[[str], None] = logger.info,
    complete: bool = False,
    defaults: ModelDefaults | None = None,
) -> tuple[ServedModel, EngineLoader]:
    """Read the model directory of `runtime`, except for its weights, which the loader reads.

    Args:
        runtime: settings of the engine.
        scheduling: settings of the scheduler; None for the defaults.
        name: of the model, for clients; None for that of its directory.
        cluster: the processes of the mesh, if there are several.
        clock: of the engine, in seconds; `serve` needs the same one.
        tell: takes a line about each step of the start.
        complete: compile every shape before serving (`ServerSettings.compile_all_first`).
        defaults: what the model's files give to requests; None for all that they state.

    Returns:
        The second and third argument of `serve`.

    Raises:
        TokenizerError, GenerationConfigError, UnsupportedModelError, InvalidRequestError: a file of the model cannot be
            read, or something in it is not supported.
    """
    files = ModelFiles.read(runtime.model, defaults)
    for note in files.notes:
        tell(f"warning: {note}")
    vocab, whole = files.arch.vocab, files.arch.context
    context = min(runtime.max_context or whole, whole)
    served = name or runtime.model.name
    template = _chat_template(runtime.model, tell)
    model = ServedModel(served, files.tokenizer, vocab, context, files.sampling, files.eos_ids, template)
    chosen = scheduling or SchedulerConfig()
    return model, EngineLoader(runtime, chosen, cluster, files.tokenizer, clock, tell, complete)


def _chat_template(directory: Path, tell: Callable[[str], None]) -> ChatTemplate | None:
    """The model's chat template; one that cannot be used is told, and the model is served without it."""
    try:
        return ChatTemplate.from_directory(directory)
    except ChatTemplateError as error:
        tell(f"warning: {error}; chats are refused")
        return None
