"""The loop between requests and the runtime: plan, submit, collect, deliver."""

from medha_jax.engine.admission import check_request
from medha_jax.engine.events import Completion, Delta, Finished, GenerationRequest, Prefilled, TokenLogprobs
from medha_jax.engine.offline import OfflineEngine, generate
from medha_jax.engine.sizing import sized_for
from medha_jax.runtime import open_executor

__all__ = [
    "Completion",
    "Delta",
    "Finished",
    "GenerationRequest",
    "OfflineEngine",
    "Prefilled",
    "TokenLogprobs",
    "check_request",
    "generate",
    "open_executor",
    "sized_for",
]
