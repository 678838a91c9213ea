"""The Triton kernels that merge parts of attention by log-sum-exp: of one GPU's tiles, and of KV groups."""

import triton
import triton.language as tl

from medha_jax.attention.gpu.items import MERGE_FIELDS
from medha_jax.attention.gpu.kernels import LN_2

LOG2_E = tl.constexpr(1.4426950408889634)
# positions of the fields in an entry of the merge list
MERGE = tl.constexpr(len(MERGE_FIELDS))
MERGE_ROW, MERGE_COUNT, MERGE_PART, MERGE_STRIDE, MERGE_PARTS = (
    tl.constexpr(list(MERGE_FIELDS).index(name)) for name in ("row", "count", "part", "stride", "parts")
)


@triton.jit
def _add_up(top, total, acc, log, one, UNIT: tl.constexpr):
    """One step of a merge by log-sum-exp: several outputs `one` with their `log`, in units of `UNIT` powers of two."""
    new_top = tl.maximum(top, tl.max(log, 0))
    level = tl.where(new_top == float("-inf"), 0.0, new_top)
    shrink, weight = tl.exp2((top - level) * UNIT), tl.exp2((log - level[None, :]) * UNIT)
    total = total * shrink + tl.sum(weight, 0)
    acc = acc * shrink[:, None] + tl.sum(one * weight[:, :, None], 0)
    return new_top, total, acc


@triton.jit
def merge_kernel(
    part_out, part_lse, merges, out, lse, same_out, same_lse,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """Merge the parts of a tile by log-sum-exp in fp32; grid (merges, KV heads, runs of `ROWS` rows).

    It reads `SOME` parts at once. Read one by one, each would cost a full memory latency.
    """
    entry = merges + tl.program_id(0) * MERGE
    row, count, part = tl.load(entry + MERGE_ROW), tl.load(entry + MERGE_COUNT), tl.load(entry + MERGE_PART)
    stride, parts = tl.load(entry + MERGE_STRIDE), tl.load(entry + MERGE_PARTS)
    head = tl.program_id(1)
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(2) * ROWS < count * GROUP:
        dims = tl.arange(0, WIDE)
        token = rows // GROUP
        mine = token < count
        inside = mine[:, None] & (dims < DIM)[None, :]
        line = head.to(tl.int64) * PARTS + part
        top = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, WIDE], tl.float32)
        for number in range(0, parts, SOME):
            several = number + tl.arange(0, SOME)
            there = several < parts
            at = (line + several * stride)[:, None] + rows[None, :]
            log = tl.load(part_lse + at, mask=there[:, None] & mine[None, :], other=float("-inf"))
            each = there[:, None, None] & inside[None, :, :]
            one = tl.load(part_out + at[:, :, None] * DIM + dims[None, None, :], mask=each, other=0.0)
            top, total, acc = _add_up(top, total, acc, log, one, 1.0)
        some = total > 0
        safe = tl.where(some, total, 1.0)
        at = (row + token) * (HEADS * GROUP) + head * GROUP + rows % GROUP
        result = (acc / safe[:, None]).to(out.dtype.element_ty)
        tl.store(out + at[:, None] * DIM + dims[None, :], result, mask=inside)
        tl.store(lse + at, tl.where(some, top + tl.log2(safe), float("-inf")) * LN_2, mask=mine)


@triton.jit
def merge_groups_kernel(
    packed, out, same_out,
    GROUPS: tl.constexpr, LINES: tl.constexpr, SKIPPED: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """Merge what groups packed (`attention.merge.pack`) into `out`, after its first `SKIPPED` lines.

    Grid (runs of `ROWS` lines,); a line is a query head of a row. It reads `SOME` groups at once.
    """
    lines, dims = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDE)
    mine = lines < LINES
    inside = mine[:, None] & (dims < DIM)[None, :]
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDE], tl.float32)
    for number in range(0, GROUPS, SOME):
        several = number + tl.arange(0, SOME)
        there = (several < GROUPS)[:, None] & mine[None, :]
        at = packed + (several[:, None] * LINES + lines[None, :]) * WIDTH
        log = tl.load(at + DIM, mask=there, other=0.0)
        if WIDTH > DIM + 1:  # two halves of its bits
            high = tl.load(at + (DIM + 1), mask=there, other=0.0).to(tl.int16, bitcast=True).to(tl.int32)
            low = log.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
            log = (low | (high << 16)).to(tl.float32, bitcast=True)
        log = tl.where(there, log, float("-inf"))
        each = there[:, :, None] & (dims < DIM)[None, None, :]
        one = tl.load(at[:, :, None] + dims[None, None, :], mask=each, other=0.0).to(tl.float32)
        top, total, acc = _add_up(top, total, acc, log, one, LOG2_E)
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + (SKIPPED + lines)[:, None] * DIM + dims[None, :], result.to(out.dtype.element_ty), mask=inside)
