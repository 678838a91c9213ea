"""The loop between requests and the runtime: plan, submit, collect, deliver."""

from medha_jax.engine.admission import check_request
from medha_jax.engine.events import Completion, Delta, Failed, Finished, GenerationRequest, Prefilled, TokenLogprobs
from medha_jax.engine.loop import Engine, Event, Output, scheduler_for
from medha_jax.engine.offline import ModelOutputError, OfflineEngine, generate
from medha_jax.engine.sizing import sized_for
from medha_jax.runtime import open_executor

__all__ = [
    "Completion",
    "Delta",
    "Engine",
    "Event",
    "Failed",
    "Finished",
    "GenerationRequest",
    "ModelOutputError",
    "OfflineEngine",
    "Output",
    "Prefilled",
    "TokenLogprobs",
    "check_request",
    "generate",
    "open_executor",
    "scheduler_for",
    "sized_for",
]
