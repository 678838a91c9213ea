"""The only place that calls Triton kernels from JAX, for both interfaces of jax-triton (0.3 and 0.4)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax_triton
from jax import Array

# jax-triton 0.3 has `out_shape` and passes aliased buffers twice; 0.4 has `out_type` and passes them once.
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
    """Launch a `triton.jit` kernel; returns the made arrays, then the changed ones.

    Its parameters are inputs, changed arrays, made arrays, the changed arrays again, then constants. A kernel must not
    use the repeated ones: jax-triton 0.3 passes the aliased outputs there, and 0.4 gets the first input instead.

    Args:
        inputs: arrays that the kernel only reads.
        changed: arrays that it changes in place; XLA copies those that are used later.
        made: shapes and dtypes of the arrays that it fills.
        grid: programs along each axis.
        warps: warps of 32 threads per program.
        stages: default depth of a loop's software pipeline.
        capability: compute capability times ten, e.g. 90.
        constants: `constexpr` parameters by name.
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
    # fused multiply-adds are explicit, because Triton 3.10 turns them off by default
    if _OLD:
        options |= dict(out_shape=outputs, enable_fp_fusion=True)
        return tuple(jax_triton.triton_call(*inputs, *changed, **options, **constants))
    first = len(inputs) + len(changed) + len(made)
    again = dict.fromkeys(kernel.arg_names[first : first + len(changed)], inputs[0])
    options |= dict(out_type=outputs, backend_options=dict(enable_fp_fusion=True))
    return tuple(jax_triton.triton_call(*inputs, *changed, **options, **again, **constants))
