"""Presets `chunks` and `pareto`: costs of small chunks, and gains of chunks that follow the context; closed forms."""

from __future__ import annotations

import dataclasses

import numpy as np

from medha_jax.config import Buckets, MeshConfig, SchedulerConfig
from medha_jax.scheduler.chunking import PrefillTable
from medha_jax.scheduler.time_model import TickWork
from medha_jax.simulate.cost import CostModel
from medha_jax.simulate.hardware import load_hardware
from medha_jax.simulate.named_models import load_model
from medha_jax.specs.chunk_work import chunk_attention, chunk_attentions
from medha_jax.specs.sizes import UNBOUNDED
from medha_jax.specs.tick_shapes import TickShapes
from research.reproduce import published
from research.reproduce.published import KI
from research.reproduce.report import Comparison, PresetRun, Reproduction

MEGA = KI * KI
SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
TARGETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


def chunks(run: PresetRun) -> Reproduction:
    """The preset: the cost of a token in chunks of every size, at 1M tokens of context."""
    rows: list[Comparison] = []
    series = {}
    for model in ("llama3-8b", "llama3-70b"):
        cost = _cost(model, SIZES)
        a_token = {size: _tick(cost, MEGA, size) / size for size in SIZES}
        series[model] = [(size, a_token[size] / a_token[2048]) for size in SIZES]
        for size in SIZES[:-2]:
            rows.append(Comparison(f"{model}, chunk {size} over 2,048", a_token[size] / a_token[2048], unit="x"))
        saturating = cost.context_s / cost.attention_s
        known = published.SMALL_CHUNK if model == "llama3-70b" else None
        alone = max(1.0, saturating / 32)
        rows.append(Comparison(f"{model}, attention alone, chunk 32 over 2,048", alone, known, "x"))
        rows.append(Comparison(f"{model}, queries from which attention computes longer than it reads", saturating))
    tick = _tick(_cost("llama3-8b", SIZES), MEGA, 512)
    rows.append(Comparison("llama3-8b, tick of a chunk of 512", tick, published.STATIC_512_TICK_S, "s"))
    return Reproduction(
        name="chunks",
        title="Seconds a token by size of chunk, at 1M tokens of context",
        setting="8 H100, tp=8; chunks alone in their ticks",
        rows=tuple(rows),
        notes=(
            "a whole tick has the weights, too, which every small chunk reads again, and the host's time.",
            "the published tick of 250 ms is that of kernels at about 14 % of the peak.",
        ),
        series=series,
        axes=("chunk, tokens", "seconds a token, over chunk 2,048"),
    )


def pareto(run: PresetRun) -> Reproduction:
    """The preset: TTFT of a prompt of 1M tokens against the longest tick on the way."""
    rows: list[Comparison] = []
    static, adaptive = [], []
    for size in SIZES:
        cost = _cost("llama3-8b", (size,))
        starts = np.arange(0, MEGA, size, dtype=float)
        squares = chunk_attentions(starts, np.full_like(starts, size), UNBOUNDED)
        ticks = cost.many(np.full_like(starts, 1 + size), squares, starts + size, np.ones_like(starts))
        static.append((float(ticks.max()), float(ticks.sum())))
        rows += [
            Comparison(f"longest tick, chunks of {size}", static[-1][0], unit="s"),
            Comparison(f"TTFT, chunks of {size}", static[-1][1], unit="s"),
        ]
    cost = _cost("llama3-8b", SIZES)
    for target in TARGETS_S:
        table = PrefillTable(cost, _shapes(cost), target, SchedulerConfig().slice_s)
        longest = max(target, _tick(cost, MEGA - SIZES[0], SIZES[0]))  # even the smallest chunk may take longer
        adaptive.append((longest, table.between(0, MEGA)))
        rows.append(Comparison(f"TTFT, adaptive, ticks of {1000 * target:.0f} ms", adaptive[-1][1], unit="s"))
    beaten = sum(any(x <= at and y <= total for x, y in adaptive) for at, total in static)
    rows.append(Comparison("sizes that an adaptive setting beats in both", beaten))
    return Reproduction(
        name="pareto",
        title="A prompt of 1M tokens: TTFT against the longest tick, which decodes beside it wait for",
        setting="Llama-3 8B, 8 H100, tp=8",
        rows=tuple(rows),
        notes=("the paper shows this as a figure without numbers that we know of.",),
        series={"static": static, "adaptive": adaptive},
        axes=("longest tick, s", "TTFT, s"),
    )


def _cost(model: str, sizes: tuple[int, ...]) -> CostModel:
    buckets = Buckets(decode=(1,), prefill=sizes, chunks=1, slices=())
    mesh = MeshConfig(tp=8, page_size=64, buckets=buckets, hardware="h100")
    return CostModel.of(load_model(model), mesh, load_hardware("h100"))


def _tick(cost: CostModel, start: int, size: int) -> float:
    return cost.seconds(TickWork(1 + size, chunk_attention(start, size, UNBOUNDED), start + size, 1))


def _shapes(cost: CostModel) -> TickShapes:
    buckets = cost.sizes.mesh.buckets
    return TickShapes(buckets, dataclasses.replace(buckets), 1, UNBOUNDED, 64, 1, 1, MEGA)
