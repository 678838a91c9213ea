"""Decoder-only language models as Flax NNX modules: Llama, Mistral, Qwen2 and Qwen3 (dense)."""

from medha_jax.models.column_product import ColumnProduct, column_product
from medha_jax.models.decoder import Decoder, Layer, Parts, final_logits, in_parts, layer_graph, parameter_specs
from medha_jax.models.form import (
    LAYERS,
    Form,
    LayerMatrix,
    form_on_cpu,
    is_layer_matrix,
    layers_apart,
    of_some_layers,
    placed_form,
    placed_sources,
    to_placed_form,
    with_layers_apart,
)
from medha_jax.models.parameters import ParameterSpec
from medha_jax.models.rotation import rotary_angles

__all__ = [
    "LAYERS",
    "ColumnProduct",
    "Decoder",
    "Form",
    "Layer",
    "LayerMatrix",
    "ParameterSpec",
    "Parts",
    "column_product",
    "final_logits",
    "form_on_cpu",
    "in_parts",
    "is_layer_matrix",
    "layer_graph",
    "layers_apart",
    "of_some_layers",
    "parameter_specs",
    "placed_form",
    "placed_sources",
    "rotary_angles",
    "to_placed_form",
    "with_layers_apart",
]
