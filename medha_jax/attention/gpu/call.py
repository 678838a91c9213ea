"""The one place that calls a Triton kernel from JAX, whichever of jax-triton's two interfaces is installed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax_triton
from jax import Array

# 0.3 names its outputs out_shape and hands aliased buffers to the kernel twice, 0.4 out_type and once
_OLD = "out_shape" in inspect.signature(jax_triton.triton_call).parameters


def launch(
    kernel: Any,
    inputs: Sequence[Array],
    changed: Sequence[Array],
    made: Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int, ...],
    warps: int,
    stages: int,
    capability: int,
    constants: Mapping[str, Any],
) -> tuple[Array, ...]:
    """Launch a kernel whose parameters are inputs, changed and made arrays, the changed ones again, then constants.

    The second mention of the changed arrays, which a kernel must not use, is where jax-triton 0.3 passes the
    outputs that share their memory; 0.4 has none, and gets the first input there.

    Args:
        kernel: a `triton.jit` function.
        inputs: arrays that it only reads.
        changed: arrays that it changes in place; XLA copies one that is used afterwards as well.
        made: shapes and dtypes of the arrays that it fills.
        grid: programs along each axis.
        warps: of 32 threads, a program.
        stages: depth of the software pipeline where a loop names none.
        capability: compute capability to compile for, ten times the number with a dot: 90.
        constants: its `constexpr` parameters.

    Returns:
        The made arrays, then the changed ones.
    """
    outputs = [*made, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in changed)]
    aliases = {len(inputs) + at: len(made) + at for at in range(len(changed))}
    options: dict[str, Any] = dict(
        kernel=kernel,
        grid=grid,
        num_warps=warps,
        num_stages=stages,
        compute_capability=capability,
        input_output_aliases=aliases,
        name=kernel.__name__,
    )
    # fused multiply-adds are asked for by name, because Triton 3.10 leaves them out by default
    if _OLD:
        options |= dict(out_shape=outputs, enable_fp_fusion=True)
        return tuple(jax_triton.triton_call(*inputs, *changed, **options, **constants))
    first = len(inputs) + len(changed) + len(made)
    again = dict.fromkeys(kernel.arg_names[first : first + len(changed)], inputs[0])
    options |= dict(out_type=outputs, backend_options=dict(enable_fp_fusion=True))
    return tuple(jax_triton.triton_call(*inputs, *changed, **options, **again, **constants))
