"""The step of an online softmax in base two (arXiv 1805.02867) that both kernels share, as LLVM instructions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llvmlite import ir

from medha_jax.native.instructions import FLOAT, INT, Instructions, word

LN_2 = math.log(2)


def write_weights(
    code: Instructions, scores: ir.Value, vectors: ir.Value, top_at: ir.Value, total_at: ir.Value
) -> ir.Value:
    """Make weights of a query's scores of some tokens, and keep its largest score and its sum of weights up to date.

    Args:
        scores: fp32, of whole vectors; -inf for tokens that the query does not see. The weights replace them.
        top_at: address of the largest score so far, which is finite at the beginning.
        total_at: address of the sum of weights so far.

    Returns:
        What the query's weighted values so far are to be multiplied with, in each lane.
    """
    b = code.builder
    old = code.get(top_at, 0, FLOAT)

    def largest(index: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
        return [code.larger(code.load(scores, b.mul(index, word(code.lanes))), carried[0])]

    (tops,) = code.loop(word(0), vectors, [code.all_lanes(old)], largest)
    top = code.largest(tops)
    tops = code.all_lanes(top)

    def weigh(index: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
        place = b.mul(index, word(code.lanes))
        weights = code.exp2(b.fsub(code.load(scores, place), tops))
        code.store(weights, scores, place)
        return [b.fadd(carried[0], weights)]

    (weights,) = code.loop(word(0), vectors, [code.all_lanes(0.0)], weigh)
    shrink = code.exp2(b.fsub(code.all_lanes(old), tops))
    kept = b.fmul(code.get(total_at, 0, FLOAT), b.extract_element(shrink, ir.Constant(INT, 0)))
    code.put(b.fadd(kept, code.sum(weights)), total_at, 0)
    code.put(top, top_at, 0)
    return shrink


def log_sum_exp(code: Instructions, top: ir.Value, total: ir.Value) -> ir.Value:
    """The natural log-sum-exp of a query's scores, from its largest score and its sum of weights."""
    log = code.call("llvm.log2.f32", FLOAT, total)
    return code.builder.fmul(code.builder.fadd(top, log), ir.Constant(FLOAT, LN_2))
