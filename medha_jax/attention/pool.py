"""The KV pool, in the model's dtype or in eight bits.

In eight bits every token and head has a power of two of its own, the least that brings its largest element within
e4m3's range. So what is stored depends on that token alone, whatever chunk it came in and whatever lies on the
page already; and a stored value is exact again in bfloat16, so that attention over an eight-bit pool is attention
over a bfloat16 pool that holds the rounded values. One byte for `head_dim` bytes: less than 1 % at 128.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

FP8 = jnp.float8_e4m3fn
LOWEST_EXPONENT = -100  # below it 2^-e would leave fp32's normal range; such values are stored as 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fp8Pool:
    """Pages of e4m3 values, and the exponent `e` of each token and head: a value is `values * 2**exponents`."""

    values: Float[Array, "layers 2 pages kv_heads page head_dim"]
    exponents: Int[Array, "layers 2 pages kv_heads page"]


Pool = Array | Fp8Pool


def empty_pool(shape: tuple[int, ...], dtype: jnp.dtype, fp8: bool) -> Pool:
    """A pool of zeros.

    Args:
        shape: `[layers, 2, pages, kv_heads, page, head_dim]`.
        dtype: of the values, unless `fp8`.
        fp8: store e4m3 with an exponent for each token and head.
    """
    if not fp8:
        return jnp.zeros(shape, dtype)
    return Fp8Pool(jnp.zeros(shape, FP8), jnp.zeros(shape[:-1], jnp.int8))


def values_of(pool: Pool) -> Array:
    """The array of a pool that has its shape `[layers, 2, pages, kv_heads, page, head_dim]`."""
    return pool.values if isinstance(pool, Fp8Pool) else pool


def to_fp8(x: Float[Array, "*rows head_dim"]) -> tuple[Float[Array, "*rows head_dim"], Int[Array, "*rows"]]:
    """Values in e4m3 and the exponents that they were divided by; what is finite stays finite.

    The exponent is exact integer arithmetic on the fp32 form `m * 2**e` of the largest element: 448, e4m3's largest
    value, is `1.75 * 2**8`.
    """
    wide = x.astype(jnp.float32)
    bits = lax.bitcast_convert_type(jnp.abs(wide).max(-1), jnp.int32)
    exponent = (bits >> 23) - 135 + ((bits & 0x7FFFFF) > 0x600000)
    exponent = jnp.maximum(exponent, LOWEST_EXPONENT)
    return (wide * _power_of_two(-exponent)[..., None]).astype(FP8), exponent.astype(jnp.int8)


def from_fp8(
    values: Float[Array, "*rows head_dim"], exponents: Int[Array, "*rows"], dtype: DTypeLike
) -> Float[Array, "*rows head_dim"]:
    """What was stored; exact in float32 and bfloat16, which have the range for it."""
    wide = values.astype(jnp.float32) * _power_of_two(exponents.astype(jnp.int32))[..., None]
    return wide.astype(dtype)


def read(pool: Pool, where: tuple[Any, ...], dtype: jnp.dtype) -> Array:
    """Part of a pool by an index into its first axes, as it was stored, or in `dtype` where that was in eight bits."""
    if isinstance(pool, Fp8Pool):
        return from_fp8(pool.values[where], pool.exponents[where], dtype)
    return pool[where]


def _power_of_two(exponent: Array) -> Array:
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
