"""Tokenizer, incremental detokenizer, stop strings, and a model directory's sampling defaults. No JAX."""

from medha_jax.text.defaults import WAY_OUT, GenerationConfigError, GenerationDefaults
from medha_jax.text.detokenizer import Detokenizer
from medha_jax.text.stops import StopStrings
from medha_jax.text.tokenizer import MAX_TOKEN_ID, Tokenizer
from medha_jax.text.tokenizer_config import TokenizerError

__all__ = [
    "MAX_TOKEN_ID",
    "WAY_OUT",
    "Detokenizer",
    "GenerationConfigError",
    "GenerationDefaults",
    "StopStrings",
    "Tokenizer",
    "TokenizerError",
]
