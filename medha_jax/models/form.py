"""The form of a model: how its weights lie, and which way its hidden states run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import EllipsisType
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medha_jax.models.column_product import ColumnProduct, column_product
from medha_jax.models.parameters import ParameterSpec

Named = TypeVar("Named")
LAYERS = "layers"
# matrices that have the same input and are one where they are placed: their names, the axis of the joined outputs
JOINED = {
    "attention.query_key_value": (("attention.query", "attention.key", "attention.value"), "all_heads"),
    "mlp.gate_up": (("mlp.gate", "mlp.up"), "gate_up"),
}


@dataclass(frozen=True)
class LayerMatrix:
    """A matrix of one layer of several, as `Projection` uses it in a loop: each layer has an array of its own.

    Of stacked arrays a loop over layers takes a slice, and XLA on CPUs copies it before the product, so that a tick
    copies all weights. A branch reads its layer's array in place.

    Args:
        arrays: of the layers, in order; all have the same shape.
        number: int32, the layer that is meant.
    """

    arrays: tuple[Array, ...]
    number: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of one layer's array."""
        return tuple(self.arrays[0].shape)

    def __getitem__(self, every: EllipsisType) -> LayerMatrix:
        """The matrix itself, where an array would be read whole."""
        return self

    def reshape(self, *shape: int) -> LayerMatrix:
        """The same entries with other sizes."""
        return replace(self, arrays=tuple(array.reshape(*shape) for array in self.arrays))


@dataclass(frozen=True)
class Form:
    """How a layer's matrices lie and its hidden states run.

    In a checkpoint each matrix is `[in, out]`. Where a model is placed they are `[out, in]`, and those that have the
    same input are joined: one product reads the hidden states, and is one launch on a GPU. With few rows hidden states
    are columns on CPUs: `[out, in] @ [in, rows]` is the fastest product there.

    Args:
        placed: matrices are `[out, in]` and joined.
        columns: hidden states are `[embed, rows]`; else `[rows, embed]`.
        query_heads: of a device, in the joined matrix.
        by: multiplies with columns, where it can; else XLA does.
    """

    placed: bool = False
    columns: bool = False
    query_heads: int = 0
    by: ColumnProduct | None = None

    @property
    def width_axis(self) -> int:
        """The axis of hidden states that is not rows."""
        return 0 if self.columns else -1

    def turned(self, x: Float[Array, "a b"]) -> Array:
        """Hidden states of rows `[rows, width]`, or the other way round."""
        if not self.columns:
            return x
        # XLA would fold the transposition into the product before or after it, which then takes half as long again
        turned: Array = jax.lax.optimization_barrier(jax.lax.optimization_barrier(x).T)
        return turned

    def rows(self, x: Array) -> int:
        """Rows of hidden states."""
        return int(x.shape[1 if self.columns else 0])

    def along_rows(self, x: Float[Array, " width"]) -> Array:
        """A vector that is added to hidden states, the same for every row."""
        return x[:, None] if self.columns else x

    def product(self, x: Array, kernel: Float[Array, "a b"] | LayerMatrix) -> Array:
        """Hidden states times a matrix in this form."""
        if self.columns and self.by is not None and self.by.takes(kernel.shape[0], x.shape[1]):
            layers = kernel if isinstance(kernel, LayerMatrix) else LayerMatrix((kernel,), jnp.int32(0))
            return self.by(layers.arrays, layers.number, x)
        if isinstance(kernel, LayerMatrix):
            products = [partial(self.product, kernel=own) for own in kernel.arrays]
            chosen: Array = jax.lax.switch(kernel.number, products, x)
            return chosen
        if self.columns:
            return kernel @ x
        if not self.placed:
            return x @ kernel
        return jax.lax.dot_general(x, kernel, (((1,), (1,)), ((), ())))


STORED = Form()
# rows up to which hidden states are columns on CPUs; with more, turning them costs XLA up to a tenth, and the kernel's
# products are no faster than XLA's
FEW_ROWS, FEW_ROWS_BY_KERNEL = 64, 256


def form_on_cpu(rows: int, dtype: jnp.dtype, query_heads: int = 0) -> Form:
    """How weights lie and hidden states run in a program of so many rows on CPUs."""
    by = column_product() if dtype == jnp.float32 else None
    columns = rows <= (FEW_ROWS if by is None else FEW_ROWS_BY_KERNEL)
    return Form(placed=True, columns=columns, query_heads=query_heads, by=by)


def placed_sources(name: str) -> tuple[str, ...]:
    """The checkpoint's parameters that a placed one is made of, in order."""
    path, _, kind = name.removeprefix(f"{LAYERS}.").rpartition(".")
    if path not in JOINED:
        return (name,)
    return tuple(f"{LAYERS}.{part}.{kind}" for part in JOINED[path][0])


def placed_form(specs: Mapping[str, ParameterSpec]) -> dict[str, ParameterSpec]:
    """The parameters where a model is placed, from those of its checkpoint."""
    turned = {name: _turned(name, spec) for name, spec in specs.items()}
    for path, (parts, axis) in JOINED.items():
        for kind in ("kernel", "bias"):
            found = [turned.pop(f"{LAYERS}.{part}.{kind}", None) for part in parts]
            if (first := found[0]) is not None:
                outputs = sum(part.shape[1] for part in found if part is not None)
                shape, axes = (first.shape[0], outputs, *first.shape[2:]), (LAYERS, axis, *first.axes[2:])
                turned[f"{LAYERS}.{path}.{kind}"] = ParameterSpec(shape, first.dtype, axes)
    return turned


def to_placed_form(name: str, sources: Sequence[Array], specs: Mapping[str, ParameterSpec], devices: int) -> Array:
    """A placed parameter from its `placed_sources`, whose checkpoint's form is in `specs`.

    The outputs of a joined matrix are those of the first of `devices` devices, then those of the second, and so on.
    """
    orders = [_order(source, specs[source].axes) for source in placed_sources(name)]
    turned = [array.transpose(order) for array, order in zip(sources, orders, strict=True)]
    if len(turned) == 1:
        return turned[0]
    shares = [array.reshape(array.shape[0], devices, -1, *array.shape[2:]) for array in turned]
    joined = jnp.concatenate(shares, axis=2)
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])


def with_layers_apart(specs: Mapping[str, ParameterSpec], stages: int) -> dict[str, ParameterSpec]:
    """Placed parameters of which each layer's matrices are arrays of their own.

    `layers.mlp.down.kernel` becomes `layers.mlp.down.kernel.0` and so on, one for each layer of a stage. Their first
    axis is the stages.
    """
    apart: dict[str, ParameterSpec] = {}
    for name, spec in specs.items():
        if not is_layer_matrix(name):
            apart[name] = spec
            continue
        for number in range(spec.shape[0] // stages):
            apart[f"{name}.{number}"] = replace(spec, shape=(stages, *spec.shape[1:]))
    return apart


def layers_apart(stacked: Array, stages: int) -> list[Array]:
    """The arrays of `with_layers_apart` from a stacked matrix, in order."""
    of_stages = stacked.reshape(stages, -1, *stacked.shape[1:])
    return [of_stages[:, number] for number in range(of_stages.shape[1])]


def of_some_layers(parameters: Mapping[str, Named], first: int, count: int) -> dict[str, Named]:
    """The same without the matrices of other layers than `count` from `first` on, whose numbers then begin at 0."""
    found = dict[str, Named]()
    for name, value in parameters.items():
        path, _, number = name.rpartition(".")
        if not number.isdigit():
            found[name] = value
        elif 0 <= (nth := int(number) - first) < count:
            found[f"{path}.{nth}"] = value
    return found


def is_layer_matrix(name: str) -> bool:
    """Whether a parameter is a matrix of the layers, of all or of one."""
    first, *path = name.split(".")
    return first == LAYERS and "kernel" in path


def _order(name: str, axes: tuple[str, ...]) -> tuple[int, ...]:
    """The order of a parameter's axes in the placed form: a layer's matrix has its outputs before its inputs.

    Of a matrix, either the inputs or the outputs are the axis `embed` alone.
    """
    last = len(axes) - 1
    if not is_layer_matrix(name):
        return tuple(range(last + 1))
    return (0, *range(2, last + 1), 1) if axes[1] == "embed" else (0, last, *range(1, last))


def _turned(name: str, spec: ParameterSpec) -> ParameterSpec:
    order = _order(name, spec.axes)
    return ParameterSpec(tuple(spec.shape[at] for at in order), spec.dtype, tuple(spec.axes[at] for at in order))
