"""The dtype of weights, activations and KV that `auto` stands for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils

from medha_jax.checkpoints import stored_dtype
from medha_jax.config import RuntimeConfig
from medha_jax.models import LayerMatrix, form_on_cpu, parameter_specs
from medha_jax.runtime.shape_compiler import Report
from medha_jax.specs.model import Architecture

EXACT, SHORT = jnp.dtype("float32"), jnp.dtype("bfloat16")
SMALL_MODEL = 2**24  # weights; with fewer, products are not most of a tick, so nothing is measured
# A product of each of these rows is timed: one decode, many, and a prompt chunk.
TIMED_ROWS = (1, 32, 512)
TIMED_LAYERS = 4
REPEATS, TIMED_SECONDS = 5, 0.25  # at least so often, and for so long, because a busy machine disturbs single ones
MOST_WEIGHTS = 2**22  # of one timed matrix, so that a large model does not start later
# bfloat16 is taken if it is nowhere slower than this, and as much faster on the whole, relative to float32
NOWHERE_ABOVE, ALL_BELOW = 1.1, 0.8

Ratio = Callable[[int, int, int], float]


def choose_dtype(config: RuntimeConfig, arch: Architecture, report: Report, ratio: Ratio | None = None) -> jnp.dtype:
    """The configured dtype; the same in every process.

    `auto` is bfloat16 on accelerators. On CPUs it is float32, except for a large model whose weights are stored in
    bfloat16, where products of such weights are measured to be faster. Other weights would lose digits.

    Args:
        report: takes a line with what was measured.
        ratio: time of a product in bfloat16 over that in float32, by its rows, inputs and outputs; `product_ratio` by
            default.

    Raises:
        CheckpointError: the model directory holds no readable weights.
    """
    if config.dtype != "auto":
        return jnp.dtype(config.dtype)
    if jax.default_backend() != "cpu":
        return SHORT
    weights = sum(math.prod(spec.shape) for spec in parameter_specs(arch, EXACT).values())
    if weights < SMALL_MODEL or stored_dtype(config.model) != SHORT.name:
        return EXACT
    inputs, outputs = arch.embed, min(2 * arch.ffn, max(1, MOST_WEIGHTS // arch.embed))  # a layer's widest matrix
    ratios = [(ratio or product_ratio)(rows, inputs, outputs) for rows in TIMED_ROWS]
    faster = max(ratios) <= NOWHERE_ABOVE and math.prod(ratios) ** (1 / len(ratios)) <= ALL_BELOW
    if jax.process_count() > 1:
        faster = bool(multihost_utils.process_allgather(np.int32(faster)).min())
    chosen = SHORT if faster else EXACT
    times = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    rows = ", ".join(map(str, TIMED_ROWS))
    report(f"dtype {chosen}: bfloat16 products of {rows} rows take {times} of the time of float32 ones")
    return chosen


def product_ratio(rows: int, inputs: int, outputs: int) -> float:
    """Time of a product in bfloat16 over that in float32, measured in turn; of each dtype the shortest time counts."""
    runs = {dtype: _product(dtype, rows, inputs, outputs) for dtype in (EXACT, SHORT)}
    best = dict.fromkeys(runs, math.inf)
    began, done = time.perf_counter(), 0
    while done < REPEATS or time.perf_counter() - began < TIMED_SECONDS:
        for dtype, run in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            best[dtype] = min(best[dtype], time.perf_counter() - started)
        done += 1
    return best[SHORT] / best[EXACT]


def _product(dtype: jnp.dtype, rows: int, inputs: int, outputs: int) -> Callable[[], Array]:
    """A product with each of `TIMED_LAYERS` matrices, as a tick's layers take them; compiled."""
    form = form_on_cpu(rows, dtype)

    def states(width: int) -> Array:
        return jnp.ones((width, rows) if form.columns else (rows, width), dtype)

    def run(x: Array, matrices: tuple[Array, ...]) -> Array:
        def layer(number: Array, total: Array) -> Array:
            return total + form.product(x, LayerMatrix(matrices, number))

        total: Array = lax.fori_loop(0, TIMED_LAYERS, layer, states(outputs))
        return total

    x, matrices = states(inputs), tuple(jnp.ones((outputs, inputs), dtype) for _ in range(TIMED_LAYERS))
    product = jax.jit(run).lower(x, matrices).compile()
    return lambda: product(x, matrices)
