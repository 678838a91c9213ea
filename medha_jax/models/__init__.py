"""Decoder-only language models as Flax NNX modules: Llama, Mistral, Qwen2 and Qwen3 (dense)."""

from medha_jax.models.architecture import Architecture, UnsupportedModelError
from medha_jax.models.decoder import Decoder, Layer, final_logits, layer_graph, parameter_specs
from medha_jax.models.parameters import ParameterSpec
from medha_jax.models.rope import RopeScaling, rotary_angles, rotary_constants

__all__ = [
    "Architecture",
    "Decoder",
    "Layer",
    "ParameterSpec",
    "RopeScaling",
    "UnsupportedModelError",
    "final_logits",
    "layer_graph",
    "parameter_specs",
    "rotary_angles",
    "rotary_constants",
]
