"""Products with columns by the kernel for CPUs, called from a traced program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

FEWEST_OUTPUTS = 6  # rows of a matrix: those of a block of the kernel


@dataclass(frozen=True)
class ColumnProduct:
    """The registered kernel `name`, and the fewest columns that it takes."""

    name: str
    fewest: int

    def takes(self, outputs: int, columns: int) -> bool:
        """Whether it can multiply a matrix of so many rows with so many columns."""
        return outputs >= FEWEST_OUTPUTS and columns >= self.fewest

    def __call__(
        self,
        matrices: Sequence[Float[Array, "outputs inputs"]],
        number: Int[Array, ""],
        x: Float[Array, "inputs columns"],
    ) -> Float[Array, "outputs columns"]:
        """Matrix `number` of some of the same shape times `x`. fp32."""
        shape = jax.ShapeDtypeStruct((matrices[0].shape[0], x.shape[1]), jnp.float32)
        result: Array = jax.ffi.ffi_call(self.name, shape)(x, number.astype(jnp.int32), *matrices)
        return result


def column_product() -> ColumnProduct:
    """The kernel for the processor at hand; its first call compiles it."""
    from medha_jax.models.product_kernel import product_module  # llvmlite, which only CPUs need
    from medha_jax.native.compiled import processor, register

    here = processor()
    return ColumnProduct(register(product_module, here), here.lanes)
