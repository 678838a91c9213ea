"""The kernels in Triton's interpreter, on NumPy arrays, in place of `medha_jax.attention.gpu.call.launch`.

To be imported before anything imports Triton, which decides then whether its functions are interpreted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter

DTYPES = {
    "bfloat16": tl.bfloat16,
    "float16": tl.float16,
    "float32": tl.float32,
    "float8_e4m3fn": tl.float8e4nv,
    "int8": tl.int8,
    "int32": tl.int32,
}
NUMPY = {dtype: jnp.dtype(name) for name, dtype in DTYPES.items()}


class Operand:
    """An array as the interpreter wants its arguments: with the few methods of a torch tensor that it calls."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.dtype, self.shape = array, DTYPES[array.dtype.name], array.shape

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> Operand:
        return self

    def cpu(self) -> Operand:
        return self

    def new_empty(self, *_: Any, **__: Any) -> Operand:
        return self

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.array.itemsize for step in self.array.strides)

    def set_(self, *_: Any) -> None: ...

    def copy_(self, *_: Any) -> None: ...


def _fill_gaps() -> None:
    """What Triton 3.6's interpreter lacks.

    Loop bounds under NumPy 2.4; products of bfloat16, which it holds as integers; conversions that round to nearest, as
    a GPU's do, where it cuts off.
    """
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    patch, dot, multiply = interpreter._patch_lang_tensor, builder.create_dot, builder.create_fmul

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def wide(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return handle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def wide_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, wide(a), wide(b), *rest)

    def wide_multiply(self: Any, a: Any, b: Any) -> Any:
        product = multiply(self, wide(a), wide(b))
        return self.cast_impl(product, tl.bfloat16) if a.dtype.scalar == tl.bfloat16 else product

    def convert(data: np.ndarray, source: Any, target: Any, _: Any) -> np.ndarray:
        wide = np.frombuffer(data.tobytes(), NUMPY[source]).astype(np.float32)
        return wide.astype(NUMPY[target]).view(f"u{NUMPY[target].itemsize}").reshape(data.shape)

    interpreter._patch_lang_tensor, interpreter._convert_float = patched, convert
    builder.create_dot, builder.create_fmul = wide_dot, wide_multiply


_fill_gaps()


def launch(
    kernel: Any,
    inputs: Sequence[Any],
    changed: Sequence[Any],
    made: Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int, ...],
    warps: int,
    stages: int,
    capability: int,
    constants: Mapping[str, Any],
) -> tuple[np.ndarray, ...]:
    """As `call.launch`. What is made begins as NaN, so that what a kernel leaves out shows."""
    assert isinstance(kernel, interpreter.InterpretedFunction), "Triton was imported before this module"
    read = [Operand(np.array(x)) for x in inputs]
    written = [Operand(np.array(x)) for x in changed]
    new = [Operand(np.full(x.shape, np.nan, x.dtype)) for x in made]
    kernel[grid](*read, *written, *new, *written, **constants)
    for given, operand in zip(inputs, read, strict=True):
        assert np.asarray(given).tobytes() == operand.array.tobytes(), f"{kernel} changed an input"
    return tuple(operand.array for operand in (*new, *written))


def launch_in_program(
    kernel: Any,
    inputs: Sequence[Any],
    changed: Sequence[Any],
    made: Sequence[jax.ShapeDtypeStruct],
    **rest: Any,
) -> tuple[jax.Array, ...]:
    """As `call.launch`, from within a compiled program on one CPU device."""
    shapes = (*made, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in changed))
    count = len(inputs)

    def run(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        return launch(kernel, arrays[:count], arrays[count:], made, **rest)

    return tuple(jax.pure_callback(run, shapes, *inputs, *changed))


__all__ = ["Operand", "launch", "launch_in_program", "triton"]
