"""Reads and writes weights: Hugging Face safetensors, the runtime's own Orbax directories, random values."""

from medha_jax.checkpoints.convert import ConversionReport, convert
from medha_jax.checkpoints.errors import CheckpointError
from medha_jax.checkpoints.export import write_huggingface
from medha_jax.checkpoints.fingerprint import fingerprint
from medha_jax.checkpoints.load import load_parameters, stored_dtype
from medha_jax.checkpoints.random import random_parameters

__all__ = [
    "CheckpointError",
    "ConversionReport",
    "convert",
    "fingerprint",
    "load_parameters",
    "random_parameters",
    "stored_dtype",
    "write_huggingface",
]
