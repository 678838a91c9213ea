"""The Triton kernels that attend. Importing this needs Triton; nothing here knows JAX.

One body computes every tile: the queries of `count` consecutive tokens of one request against blocks `first` to `past`
of `KEYS` tokens each. All query heads of one KV head are rows of the tile (token major). A decode is a tile of one
token, so prefill and decode differ only in size, and one launch may hold both.

The page of a block is looked up one block ahead to hide the latency. Offsets of whole pages are 64-bit: a pool of a
million tokens of an 8B model has 2^36 elements.
"""

import triton
import triton.language as tl

from medha_jax.attention.gpu.items import ITEM_FIELDS

LN_2 = tl.constexpr(0.6931471805599453)
LOWEST_EXPONENT = tl.constexpr(-100)
# positions of the fields in an entry of the work list
ITEM = tl.constexpr(len(ITEM_FIELDS))
ITEM_ROW, ITEM_COUNT, ITEM_SLOT, ITEM_START, ITEM_LIMIT, ITEM_FIRST, ITEM_PAST, ITEM_PART, ITEM_DECODE = (
    tl.constexpr(list(ITEM_FIELDS).index(name))
    for name in ("row", "count", "slot", "start", "limit", "first", "past", "part", "decode")
)
LIFT = tl.constexpr(15)  # powers of two by which weights, at most 1, are raised in fp16, whose largest is 65504


@triton.jit
def _page_of(table, block, PAGE: tl.constexpr, KEYS: tl.constexpr):
    """The page of a block; where a block spans several pages, the page of each of its tokens."""
    if KEYS <= PAGE:
        page = tl.load(table + block // (PAGE // KEYS))
    else:
        page = tl.load(table + block * (KEYS // PAGE) + tl.arange(0, KEYS) // PAGE)
    return page


@triton.jit
def _lines(page, block, head, layer, HEADS: tl.constexpr, PAGES: tl.constexpr, PAGE: tl.constexpr, KEYS: tl.constexpr):
    """The lines of a block's keys: 64-bit number of the first line, 32-bit offsets from it."""
    keys = tl.arange(0, KEYS)
    page = ((layer * (2 * PAGES) + page).to(tl.int64) * HEADS + head) * PAGE
    if KEYS <= PAGE:
        first = page + (block % (PAGE // KEYS)) * KEYS
        after = keys
    else:
        first = page
        after = keys % PAGE
    return first, after


@triton.jit
def _load(pool, first, after, dtype: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr):
    """Keys or values `[KEYS, WIDE]` of the lines of a block, in the dtype of the products."""
    dims = tl.arange(0, WIDE)
    start = pool + first * DIM
    if first.type.is_block():
        where = start[:, None] + (after[:, None] * DIM + dims[None, :])
    else:
        where = start + (after[:, None] * DIM + dims[None, :])
    if WIDE == DIM:
        block = tl.load(where)
    else:
        block = tl.load(where, mask=dims[None, :] < DIM, other=0.0)
    return block.to(dtype)


@triton.jit
def two_to(power):
    """2 to an integer, exactly; 0 below fp32's normal numbers."""
    return (tl.maximum(power + 127, 0) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _in_range_of_fp16(q):
    """Rows scaled by a power of two each, in fp16 (one instruction converts e4m3 to it), and those powers.

    Exact except for elements more than 2^14 times smaller than their row's largest.
    """
    bits = tl.max(tl.abs(q.to(tl.float32)), 1).to(tl.int32, bitcast=True)
    power = tl.maximum((bits >> 23) - 127, LOWEST_EXPONENT)
    if q.dtype != tl.float32:
        q = (q.to(tl.float32) * two_to(-power)[:, None]).to(tl.float16)
    else:
        q = q * two_to(-power)[:, None]
    return q, two_to(power)


@triton.jit
def _block(
    block, page, q, scale, pool, exponents, head, number, top, total, acc, level, seen, held,
    HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, PAGE: tl.constexpr, PAGES: tl.constexpr,
    SCALE: tl.constexpr, FP8: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One step of online softmax in base two: `SCALE` is log2(e) / sqrt(head_dim).

    In eight bits, the products use the stored values. The keys' powers of two scale the scores; the values' scale the
    weights. `acc` is in units of 2^(level - LIFT), where `level` is the largest power of a value so far. So weights
    down to 2^-29 keep all digits of fp16, and the loss in smaller ones is below 2^-40.
    """
    line, after = _lines(page, block, head, number, HEADS, PAGES, PAGE, KEYS)
    values_line = line + PAGES * HEADS * PAGE
    keys = _load(pool, line, after, q.dtype, DIM, WIDE)
    values = _load(pool, values_line, after, q.dtype, DIM, WIDE)
    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
    if FP8:
        powers = tl.load(exponents + line + after).to(tl.int32)
        scores = scores * (scale[:, None] * two_to(powers)[None, :])
    if MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    if MASKED:
        # rows that saw no token yet stay at -inf, which must not be subtracted from itself
        least = tl.where(new_top == float("-inf"), 0.0, new_top) * SCALE
    else:
        least = new_top * SCALE
    weights = tl.exp2(scores * SCALE - least[:, None])
    shrink = tl.exp2(top * SCALE - least)
    total = total * shrink + tl.sum(weights, 1)
    if FP8:
        powers = tl.load(exponents + values_line + after).to(tl.int32)
        if MASKED:
            powers = tl.where(held, powers, LOWEST_EXPONENT)
        new_level = tl.maximum(level, tl.max(powers, 0))
        weights = weights * two_to(powers - new_level + LIFT)[None, :]
        shrink = shrink * two_to(level - new_level)
        level = new_level
    acc = acc * shrink[:, None]
    acc = tl.dot(weights.to(values.dtype), values, acc, input_precision=PRECISION)
    return new_top, total, acc, level


@triton.jit
def _tile(
    item, head, queries, pool, exponents, layer, table, out, lse, part_out, part_lse,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    PAGE: tl.constexpr, PAGES: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
    SCALE: tl.constexpr, FP8: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Attention of one item of the work list and one KV head; whole, or a part to be merged."""
    row, count, slot = tl.load(item + ITEM_ROW), tl.load(item + ITEM_COUNT), tl.load(item + ITEM_SLOT)
    start, limit = tl.load(item + ITEM_START), tl.load(item + ITEM_LIMIT)
    first, past, part = tl.load(item + ITEM_FIRST), tl.load(item + ITEM_PAST), tl.load(item + ITEM_PART)
    number = tl.load(layer)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, WIDE)
    token = rows // GROUP
    mine = token < count
    at = (row + token) * (HEADS * GROUP) + head * GROUP + rows % GROUP
    inside = mine[:, None] & (dims < DIM)[None, :]
    q = tl.load(queries + at[:, None] * DIM + dims[None, :], mask=inside, other=0.0)
    pages = table + slot * WIDTH
    scale = tl.full([ROWS], 1.0, tl.float32)
    if FP8:
        q, scale = _in_range_of_fp16(q)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDE], tl.float32)
    level = LOWEST_EXPONENT
    # blocks that every row sees completely need no mask
    whole = tl.minimum(tl.maximum(tl.minimum(start + 1, limit) // KEYS, first), past)
    if past > first:
        page = _page_of(pages, first, PAGE, KEYS)
        for block in tl.range(first, whole, num_stages=STAGES):
            this = page
            page = _page_of(pages, tl.minimum(block + 1, past - 1), PAGE, KEYS)
            top, total, acc, level = _block(
                block, this, q, scale, pool, exponents, head, number, top, total, acc, level, mine, mine,
                HEADS, DIM, WIDE, PAGE, PAGES, SCALE, FP8, False, PRECISION, KEYS,
            )  # fmt: skip
        for block in tl.range(whole, past, num_stages=1):
            this = page
            page = _page_of(pages, tl.minimum(block + 1, past - 1), PAGE, KEYS)
            here = block * KEYS + tl.arange(0, KEYS)
            held = here < tl.minimum(limit, start + count)
            seen = (here[None, :] <= (start + token)[:, None]) & (here < limit)[None, :]
            top, total, acc, level = _block(
                block, this, q, scale, pool, exponents, head, number, top, total, acc, level, seen, held,
                HEADS, DIM, WIDE, PAGE, PAGES, SCALE, FP8, True, PRECISION, KEYS,
            )  # fmt: skip

    some = total > 0
    safe = tl.where(some, total, 1.0)
    result = acc / safe[:, None]
    if FP8:
        result = result * two_to(level - LIFT)
    log = tl.where(some, top * SCALE + tl.log2(safe), float("-inf"))
    if part < 0:
        tl.store(out + at[:, None] * DIM + dims[None, :], result.to(out.dtype.element_ty), mask=inside)
        tl.store(lse + at, log * LN_2, mask=mine)
    else:
        line = head.to(tl.int64) * PARTS + part
        tl.store(part_out + line * DIM + rows[:, None] * DIM + dims[None, :], result, mask=inside)
        tl.store(part_lse + line + rows, log, mask=mine)


@triton.jit
def attend_kernel(
    queries, pool, exponents, layer, table, items, out, lse, part_out, part_lse,
    FIRST: tl.constexpr,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    PAGE: tl.constexpr, PAGES: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
    SCALE: tl.constexpr, FP8: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Items of one kind, from the `FIRST` of the list on; grid (items, KV heads)."""
    item = items + (FIRST + tl.program_id(0)) * ITEM
    if tl.load(item + ITEM_COUNT) > 0:
        _tile(
            item, tl.program_id(1), queries, pool, exponents, layer, table, out, lse, part_out, part_lse,
            HEADS, GROUP, DIM, WIDE, PAGE, PAGES, WIDTH, PARTS, SCALE, FP8, PRECISION, ROWS, KEYS, STAGES,
        )  # fmt: skip


@triton.jit
def attend_more_kernel(
    queries, pool, exponents, layer, table, items, out, lse, part_out, part_lse,
    same_out, same_lse, same_part_out, same_part_lse,
    FIRST: tl.constexpr,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    PAGE: tl.constexpr, PAGES: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
    SCALE: tl.constexpr, FP8: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """As `attend_kernel`, into outputs that another launch has begun; `same_*` are those outputs once more."""
    item = items + (FIRST + tl.program_id(0)) * ITEM
    if tl.load(item + ITEM_COUNT) > 0:
        _tile(
            item, tl.program_id(1), queries, pool, exponents, layer, table, out, lse, part_out, part_lse,
            HEADS, GROUP, DIM, WIDE, PAGE, PAGES, WIDTH, PARTS, SCALE, FP8, PRECISION, ROWS, KEYS, STAGES,
        )  # fmt: skip


@triton.jit
def attend_mixed_kernel(
    queries, pool, exponents, layer, table, items, out, lse, part_out, part_lse,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    PAGE: tl.constexpr, PAGES: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
    SCALE: tl.constexpr, FP8: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
    DECODE_ROWS: tl.constexpr, DECODE_KEYS: tl.constexpr, DECODE_STAGES: tl.constexpr,
):  # fmt: skip
    """Items of both kinds, so that decodes read memory while prompt tiles compute; grid (items, KV heads)."""
    item = items + tl.program_id(0) * ITEM
    if tl.load(item + ITEM_COUNT) > 0:
        if tl.load(item + ITEM_DECODE) > 0:
            _tile(
                item, tl.program_id(1), queries, pool, exponents, layer, table, out, lse, part_out, part_lse,
                HEADS, GROUP, DIM, WIDE, PAGE, PAGES, WIDTH, PARTS, SCALE, FP8, PRECISION,
                DECODE_ROWS, DECODE_KEYS, DECODE_STAGES,
            )  # fmt: skip
        else:
            _tile(
                item, tl.program_id(1), queries, pool, exponents, layer, table, out, lse, part_out, part_lse,
                HEADS, GROUP, DIM, WIDE, PAGE, PAGES, WIDTH, PARTS, SCALE, FP8, PRECISION, ROWS, KEYS, STAGES,
            )  # fmt: skip
