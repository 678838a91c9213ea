"""The KV pool, in the model's dtype or in eight bits.

In eight bits, each token and head is scaled by the least power of two that fits its largest element into e4m3. So the
stored values depend on that token alone, not on its chunk or page. bfloat16 represents them exactly, so attention
equals that over a bfloat16 pool of the rounded values. The exponent takes one byte per `head_dim` bytes: 0.8 % at 128.
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
    """Pages of e4m3 values, with one exponent per token and head. A stored number is `values * 2**exponents`."""

    values: Float[Array, "layers 2 pages kv_heads page head_dim"]
    exponents: Int[Array, "layers 2 pages kv_heads page"]


Pool = Array | Fp8Pool


def empty_pool(shape: tuple[int, ...], dtype: jnp.dtype, fp8: bool) -> Pool:
    """A pool of zeros of shape `[layers, 2, pages, kv_heads, page, head_dim]`, in `dtype` or, if `fp8`, in e4m3."""
    if not fp8:
        return jnp.zeros(shape, dtype)
    return Fp8Pool(jnp.zeros(shape, FP8), jnp.zeros(shape[:-1], jnp.int8))


def values_of(pool: Pool) -> Array:
    """The values of a pool `[layers, 2, pages, kv_heads, page, head_dim]`."""
    return pool.values if isinstance(pool, Fp8Pool) else pool


def to_fp8(x: Float[Array, "*rows head_dim"]) -> tuple[Float[Array, "*rows head_dim"], Int[Array, "*rows"]]:
    """Values in e4m3 and their exponents; finite values stay finite.

    Integer arithmetic on the fp32 form `m * 2**e` of the largest element gives the exponent exactly. The largest
    value of e4m3 is 448 = `1.75 * 2**8`.
    """
    wide = x.astype(jnp.float32)
    bits = lax.bitcast_convert_type(jnp.abs(wide).max(-1), jnp.int32)
    exponent = (bits >> 23) - 135 + ((bits & 0x7FFFFF) > 0x600000)
    exponent = jnp.maximum(exponent, LOWEST_EXPONENT)
    return (wide * _power_of_two(-exponent)[..., None]).astype(FP8), exponent.astype(jnp.int8)


def from_fp8(
    values: Float[Array, "*rows head_dim"], exponents: Int[Array, "*rows"], dtype: DTypeLike
) -> Float[Array, "*rows head_dim"]:
    """The stored numbers; exact in float32 and bfloat16, whose range is wide enough."""
    wide = values.astype(jnp.float32) * _power_of_two(exponents.astype(jnp.int32))[..., None]
    return wide.astype(dtype)


def read(pool: Pool, where: tuple[Any, ...], dtype: jnp.dtype) -> Array:
    """Part of a pool by an index into its first axes, in the pool's dtype, or in `dtype` for an eight-bit pool."""
    if isinstance(pool, Fp8Pool):
        return from_fp8(pool.values[where], pool.exponents[where], dtype)
    return pool[where]


def _power_of_two(exponent: Array) -> Array:
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
