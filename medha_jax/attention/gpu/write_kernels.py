"""The Triton kernels that rotate queries and keys and write keys and values into the pool.

A program has one KV head of one row: its key, its value, and the queries that share them.
"""

import triton
import triton.language as tl

from medha_jax.attention.gpu.kernels import LOWEST_EXPONENT, two_to


@triton.jit
def _halves(start, inside, DIM: tl.constexpr):
    """Both halves of heads that begin at `start`, in fp32."""
    first = tl.load(start, mask=inside, other=0.0)
    second = tl.load(start + DIM // 2, mask=inside, other=0.0)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def _rotated(start, inside, cos, sin, DIM: tl.constexpr):
    """Both halves of heads, rotated in fp32 as `attention.rotate.rotate` does; not rounded yet."""
    first, second = _halves(start, inside, DIM)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _put(first, second, line, pool, exponents, DIM: tl.constexpr, WIDE: tl.constexpr, FP8: tl.constexpr):
    """Store both halves of one head's key or value as line `line` of the pool; non-finite elements become 0."""
    dims = tl.arange(0, WIDE // 2)
    first = tl.where(tl.abs(first) < float("inf"), first, 0.0)
    second = tl.where(tl.abs(second) < float("inf"), second, 0.0)
    if FP8:
        bits = tl.max(tl.maximum(tl.abs(first), tl.abs(second)), 0).to(tl.int32, bitcast=True)
        # the least power of two that scales the largest element, m * 2^e, to at most 448 = 1.75 * 2^8
        power = (bits >> 23) - 135 + ((bits & 0x7FFFFF) > 0x600000).to(tl.int32)
        power = tl.maximum(power, LOWEST_EXPONENT)
        first, second = first * two_to(-power), second * two_to(-power)
        tl.store(exponents + line, power.to(tl.int8))
    dtype = pool.dtype.element_ty
    tl.store(pool + line * DIM + dims, first.to(dtype), mask=dims < DIM // 2)
    tl.store(pool + line * DIM + (DIM // 2 + dims), second.to(dtype), mask=dims < DIM // 2)


@triton.jit
def _write(
    heads, cos, sin, positions, slots, table, layer, pool, exponents, queries,
    HEADS: tl.constexpr, GROUP: tl.constexpr, MANY: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    PAGE: tl.constexpr, PAGES: tl.constexpr, WIDTH: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """One row and KV head: its key and value into the pool, and the queries that share it, rotated."""
    row, head = tl.program_id(0), tl.program_id(1)
    dims, group = tl.arange(0, WIDE // 2), tl.arange(0, MANY)
    inside = dims < DIM // 2
    cosine = tl.load(cos + row * (DIM // 2) + dims, mask=inside, other=0.0)
    sine = tl.load(sin + row * (DIM // 2) + dims, mask=inside, other=0.0)
    given = heads + row * (HEADS * (GROUP + 2) * DIM)
    key = given + (HEADS * GROUP + head) * DIM + dims
    key_first, key_second = _rotated(key, inside, cosine, sine, DIM)
    value_first, value_second = _halves(key + HEADS * DIM, inside, DIM)
    dtype = queries.dtype.element_ty
    key_first, key_second = key_first.to(dtype).to(tl.float32), key_second.to(dtype).to(tl.float32)
    position = tl.load(positions + row)
    if position >= 0:
        page = tl.load(table + tl.load(slots + row) * WIDTH + position // PAGE)
        line = ((tl.load(layer) * (2 * PAGES) + page).to(tl.int64) * HEADS + head) * PAGE + position % PAGE
        _put(key_first, key_second, line, pool, exponents, DIM, WIDE, FP8)
        _put(value_first, value_second, line + PAGES * HEADS * PAGE, pool, exponents, DIM, WIDE, FP8)
    infinity = float("inf")
    finite = (tl.abs(key_first) < infinity) & (tl.abs(key_second) < infinity)
    finite = finite & (tl.abs(value_first) < infinity) & (tl.abs(value_second) < infinity)
    good = tl.min(finite.to(tl.int32), 0) > 0
    at = (head * GROUP + group)[:, None] * DIM + dims[None, :]
    mine = (group < GROUP)[:, None] & inside[None, :]
    first, second = _rotated(given + at, mine, cosine[None, :], sine[None, :], DIM)
    into = queries + row * (HEADS * GROUP * DIM) + at
    tl.store(into, tl.where(good, first, float("nan")).to(dtype), mask=mine)
    tl.store(into + DIM // 2, tl.where(good, second, float("nan")).to(dtype), mask=mine)


@triton.jit
def write_kernel(
    heads, cos, sin, positions, slots, table, layer, pool, queries, same_pool,
    HEADS: tl.constexpr, GROUP: tl.constexpr, MANY: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    PAGE: tl.constexpr, PAGES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Rotate queries and keys; keys and values of a row go into its page, if its position is not -1.

    Grid (rows, KV heads). `heads` are those of queries, keys and values of a row, one after the other. Queries become
    NaN where their own key or value is not finite, because the pool has a 0 in its place.
    """
    _write(
        heads, cos, sin, positions, slots, table, layer, pool, pool, queries,
        HEADS, GROUP, MANY, DIM, WIDE, PAGE, PAGES, WIDTH, False,
    )  # fmt: skip


@triton.jit
def write_fp8_kernel(
    heads, cos, sin, positions, slots, table, layer, pool, exponents, queries, same_pool, same_exponents,
    HEADS: tl.constexpr, GROUP: tl.constexpr, MANY: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    PAGE: tl.constexpr, PAGES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """As `write_kernel`, in e4m3 with a power of two for each row and head."""
    _write(
        heads, cos, sin, positions, slots, table, layer, pool, exponents, queries,
        HEADS, GROUP, MANY, DIM, WIDE, PAGE, PAGES, WIDTH, True,
    )  # fmt: skip
