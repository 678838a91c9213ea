"""The step of an online softmax in base two (arXiv 1805.02867) that both kernels share, as LLVM instructions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llvmlite import ir

from medha_jax.native.instructions import FLOAT, INT, Instructions, word

LN_2 = math.log(2)


def write_weights(
    code: Instructions, scores: Sequence[ir.Value], vectors: ir.Value, top_at: ir.Value, total_at: ir.Value
) -> list[ir.Value]:
    """Make weights of some queries' scores, and keep their largest scores and their sums of weights up to date.

    The queries take each step together: it takes a processor far longer to end than to begin one.

    Args:
        scores: fp32 of each query, of whole vectors; -inf for tokens that it does not see. The weights replace them.
        top_at: address of the largest scores so far, which are finite at the beginning.
        total_at: address of the sums of weights so far.

    Returns:
        What each query's weighted values so far are to be multiplied with, in each lane.
    """
    b = code.builder
    old = [code.get(top_at, nth, FLOAT) for nth in range(len(scores))]

    def largest(index: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
        place = b.mul(index, word(code.lanes))
        return [code.larger(code.load(own, place), most) for own, most in zip(scores, carried, strict=True)]

    # A score that is NaN is dropped here; its weight is NaN, and so is all that comes of it.
    tops = [code.largest(most) for most in code.loop(word(0), vectors, [code.all_lanes(one) for one in old], largest)]
    lanes = [code.all_lanes(top) for top in tops]

    def weigh(index: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
        place = b.mul(index, word(code.lanes))
        weights = [code.exp2(b.fsub(code.load(own, place), top)) for own, top in zip(scores, lanes, strict=True)]
        for own, weight in zip(scores, weights, strict=True):
            code.store(weight, own, place)
        return [b.fadd(total, weight) for total, weight in zip(carried, weights, strict=True)]

    sums = code.loop(word(0), vectors, [code.all_lanes(0.0)] * len(scores), weigh)
    shrinks = [code.exp2(b.fsub(code.all_lanes(one), top)) for one, top in zip(old, lanes, strict=True)]
    for nth, (top, weights, shrink) in enumerate(zip(tops, sums, shrinks, strict=True)):
        kept = b.fmul(code.get(total_at, nth, FLOAT), b.extract_element(shrink, ir.Constant(INT, 0)))
        code.put(b.fadd(kept, code.sum(weights)), total_at, nth)
        code.put(top, top_at, nth)
    return shrinks


def log_sum_exp(code: Instructions, top: ir.Value, total: ir.Value) -> ir.Value:
    """The natural log-sum-exp of a query's scores, from its largest score and its sum of weights."""
    log = code.call("llvm.log2.f32", FLOAT, total)
    return code.builder.fmul(code.builder.fadd(top, log), ir.Constant(FLOAT, LN_2))
