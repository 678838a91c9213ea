"""Tokenizer, incremental detokenizer, stop strings, and a model directory's sampling defaults. No JAX."""

from medha_jax.text.defaults import GenerationConfigError, GenerationDefaults
from medha_jax.text.detokenizer import Detokenizer
from medha_jax.text.stops import StopStrings
from medha_jax.text.tokenizer import MAX_TOKEN_ID, Tokenizer, TokenizerError

__all__ = [
    "MAX_TOKEN_ID",
    "Detokenizer",
    "GenerationConfigError",
    "GenerationDefaults",
    "StopStrings",
    "Tokenizer",
    "TokenizerError",
]
