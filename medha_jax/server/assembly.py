"""Makes the arguments of `serve` from a model directory: the served model and its loader."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from medha_jax.config import RuntimeConfig, SchedulerConfig
from medha_jax.engine import EngineLoader
from medha_jax.plan import SamplingParams
from medha_jax.server.request_parser import ServedModel
from medha_jax.specs.model import Architecture
from medha_jax.text import GenerationDefaults, Tokenizer

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

    Returns:
        The second and third argument of `serve`.

    Raises:
        TokenizerError, GenerationConfigError, UnsupportedModelError, InvalidRequestError: a file of the model cannot be
            read, or something in it is not supported.
    """
    defaults = GenerationDefaults.from_directory(runtime.model)
    sampling = SamplingParams.from_file(runtime.model / "generation_config.json", defaults.sampling)
    tokenizer = Tokenizer.from_directory(runtime.model)
    arch = Architecture.from_directory(runtime.model)
    context = min(runtime.max_context or arch.context, arch.context)
    model = ServedModel(name or runtime.model.name, tokenizer, arch.vocab, context, sampling, defaults.eos_ids)
    return model, EngineLoader(runtime, scheduling or SchedulerConfig(), cluster, tokenizer, clock, tell, complete)
