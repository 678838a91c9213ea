"""The name and axis order of each parameter in a Hugging Face checkpoint.

Llama, Mistral, Qwen2 and Qwen3 use the same names. Linear layers are stored as `[out, in]`, one tensor per layer. Our
arrays are `[layers, inputs..., outputs...]`, with heads as a separate axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Groups = tuple[tuple[int, ...], ...]
Index = tuple[slice, ...]
Span = tuple[int, int]

# A transposed copy writes columns. 32 values of 2 bytes fill one cache line of the target: a core copies blocks of 32
# rows at 0.9 GB/s, the whole matrix at once at 0.27 GB/s.
TRANSPOSED_ROWS = 32
BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class StoredTensor:
    """One row of the table.

    Attributes:
        name: the stored name; `{layer}` is the number of the layer if there is one tensor per layer.
        groups: for each stored dimension, the axes of our array of one layer that are flattened into it.
    """

    name: str
    groups: Groups

    @property
    def stacked(self) -> bool:
        """Whether our array has a leading layer axis."""
        return "{layer}" in self.name

    @property
    def transposed(self) -> bool:
        """Whether the stored order of the axes differs from ours."""
        order = [axis for group in self.groups for axis in group]
        return order != sorted(order)

    def names(self, shape: tuple[int, ...]) -> list[str]:
        """The stored names of our array of `shape`, first layer first."""
        return [self.name.format(layer=layer) for layer in range(shape[0])] if self.stacked else [self.name]

    def layer_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Our shape of one layer: stacked `[3, 32, 4, 8]` gives `[32, 4, 8]`."""
        return shape[1:] if self.stacked else shape

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The stored shape of each tensor: query `[3, 32, 4, 8]` is stored as `[32, 32]` per layer."""
        sizes = self.layer_shape(shape)
        return tuple(math.prod(sizes[axis] for axis in group) for group in self.groups)

    def to_stored(self, layer: np.ndarray) -> np.ndarray:
        """Our array of one layer in the stored order, C-contiguous."""
        order = [axis for group in self.groups for axis in group]
        shape = [math.prod(layer.shape[axis] for axis in group) for group in self.groups]
        return np.ascontiguousarray(layer.transpose(order).reshape(shape))

    def fill(
        self, target: np.ndarray, index: Index, sizes: tuple[int, ...], read: Callable[[Index], np.ndarray]
    ) -> None:
        """Copy the slice `index` of one layer into `target`, cast to its dtype.

        Args:
            target: C-contiguous array of the selected shape.
            index: bounded slices of our layer, one per axis.
            sizes: our full shape of one layer.
            read: returns a slice of the stored tensor; called for the needed parts only.
        """
        spans = [_spans([sizes[a] for a in group], [index[a] for a in group]) for group in self.groups]
        lengths = [sum(stop - start for start, stop in group) for group in spans]
        view = target.reshape(lengths[::-1]).T if self.transposed else target.reshape(lengths)
        width = max(1, math.prod(lengths[1:]) * target.itemsize)
        step = TRANSPOSED_ROWS if self.transposed else max(1, BLOCK_BYTES // width)
        for row, rows in _blocks(spans[0], step):
            if len(spans) == 1:
                view[row : row + rows.stop - rows.start] = read((rows,))
                continue
            for column, columns in _blocks(spans[1], lengths[1]):
                into = (
                    slice(row, row + rows.stop - rows.start),
                    slice(column, column + columns.stop - columns.start),
                )
                view[into] = read((rows, columns))


def _spans(sizes: list[int], slices: list[slice]) -> list[Span]:
    """Ranges of a flattened dimension. Sizes `[4, 8]`: slices `1:3, 0:8` give `[(8, 24)]`; `1:3, 0:2` gives two."""
    if len(sizes) == 1:
        return [(slices[0].start, slices[0].stop)]
    (_, inner), (major, minor) = sizes, slices
    if minor.stop - minor.start == inner:
        return [(major.start * inner, major.stop * inner)]
    return [(at * inner + minor.start, at * inner + minor.stop) for at in range(major.start, major.stop)]


def _blocks(spans: list[Span], step: int) -> list[tuple[int, slice]]:
    """Cut spans into pieces of at most `step`, each with its position in the target."""
    blocks, place = [], 0
    for first, last in spans:
        for start in range(first, last, step):
            stop = min(start + step, last)
            blocks.append((place, slice(start, stop)))
            place += stop - start
    return blocks


def bounded(index: Any, shape: tuple[int, ...]) -> Index:
    """`index` with its open ends filled in from `shape`."""
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))


_VECTOR: Groups = ((0,),)
_HEAD_VECTOR: Groups = ((0, 1),)
_ROWS: Groups = ((0,), (1,))
_LINEAR: Groups = ((1,), (0,))
_TO_HEADS: Groups = ((1, 2), (0,))
_FROM_HEADS: Groups = ((2,), (0, 1))

_LAYER = "model.layers.{layer}."
_ATTENTION, _MLP = _LAYER + "self_attn.", _LAYER + "mlp."

TABLE: dict[str, StoredTensor] = {
    "embedding": StoredTensor("model.embed_tokens.weight", _ROWS),
    "head": StoredTensor("lm_head.weight", _ROWS),
    "norm.scale": StoredTensor("model.norm.weight", _VECTOR),
    "layers.attention_norm.scale": StoredTensor(_LAYER + "input_layernorm.weight", _VECTOR),
    "layers.attention.query.kernel": StoredTensor(_ATTENTION + "q_proj.weight", _TO_HEADS),
    "layers.attention.query.bias": StoredTensor(_ATTENTION + "q_proj.bias", _HEAD_VECTOR),
    "layers.attention.key.kernel": StoredTensor(_ATTENTION + "k_proj.weight", _TO_HEADS),
    "layers.attention.key.bias": StoredTensor(_ATTENTION + "k_proj.bias", _HEAD_VECTOR),
    "layers.attention.value.kernel": StoredTensor(_ATTENTION + "v_proj.weight", _TO_HEADS),
    "layers.attention.value.bias": StoredTensor(_ATTENTION + "v_proj.bias", _HEAD_VECTOR),
    "layers.attention.output.kernel": StoredTensor(_ATTENTION + "o_proj.weight", _FROM_HEADS),
    "layers.attention.output.bias": StoredTensor(_ATTENTION + "o_proj.bias", _VECTOR),
    "layers.attention.query_norm.scale": StoredTensor(_ATTENTION + "q_norm.weight", _VECTOR),
    "layers.attention.key_norm.scale": StoredTensor(_ATTENTION + "k_norm.weight", _VECTOR),
    "layers.mlp_norm.scale": StoredTensor(_LAYER + "post_attention_layernorm.weight", _VECTOR),
    "layers.mlp.gate.kernel": StoredTensor(_MLP + "gate_proj.weight", _LINEAR),
    "layers.mlp.gate.bias": StoredTensor(_MLP + "gate_proj.bias", _VECTOR),
    "layers.mlp.up.kernel": StoredTensor(_MLP + "up_proj.weight", _LINEAR),
    "layers.mlp.up.bias": StoredTensor(_MLP + "up_proj.bias", _VECTOR),
    "layers.mlp.down.kernel": StoredTensor(_MLP + "down_proj.weight", _LINEAR),
    "layers.mlp.down.bias": StoredTensor(_MLP + "down_proj.bias", _VECTOR),
}
