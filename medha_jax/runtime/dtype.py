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
from medha_jax.models import Form, parameter_specs
from medha_jax.runtime.shape_compiler import Report
from medha_jax.specs.model import Architecture

EXACT, SHORT = jnp.dtype("float32"), jnp.dtype("bfloat16")
SMALL_MODEL = 2**24  # weights; with fewer, products are not most of a tick, so nothing is measured
# A product of each of these rows is timed: one decode, many, and a prompt chunk.
TIMED_ROWS = (1, 32, 512)
TIMED_LAYERS, REPEATS = 4, 3
MOST_WEIGHTS = 2**22  # of one timed matrix, so that a large model does not start later
# bfloat16 is taken if it is nowhere slower than this, and as much faster on the whole, relative to float32
NOWHERE_ABOVE, ALL_BELOW = 1.1, 0.8

TimeProduct = Callable[[jnp.dtype, int, int, int], float]


def choose_dtype(
    config: RuntimeConfig, arch: Architecture, report: Report, seconds: TimeProduct | None = None
) -> jnp.dtype:
    """The configured dtype; the same in every process.

    `auto` is bfloat16 on accelerators. On CPUs it is float32, except for a large model whose weights are stored in
    bfloat16, where products of such weights are measured to be faster. Other weights would lose digits.

    Args:
        report: takes a line with what was measured.
        seconds: of products of a dtype with so many rows, inputs and outputs; `product_seconds` by default.

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
    ratios = _ratios(arch, seconds or product_seconds)
    faster = max(ratios) <= NOWHERE_ABOVE and math.prod(ratios) ** (1 / len(ratios)) <= ALL_BELOW
    if jax.process_count() > 1:
        faster = bool(multihost_utils.process_allgather(np.int32(faster)).min())
    chosen = SHORT if faster else EXACT
    times = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    rows = ", ".join(map(str, TIMED_ROWS))
    report(f"dtype {chosen}: bfloat16 products of {rows} rows take {times} of the time of float32 ones")
    return chosen


def _ratios(arch: Architecture, seconds: TimeProduct) -> tuple[float, ...]:
    """Time in bfloat16 over that in float32 for each of `TIMED_ROWS`, with the widest matrix of a layer."""
    inputs = arch.embed
    outputs = min(2 * arch.ffn, max(1, MOST_WEIGHTS // inputs))
    return tuple(seconds(SHORT, rows, inputs, outputs) / seconds(EXACT, rows, inputs, outputs) for rows in TIMED_ROWS)


def product_seconds(dtype: jnp.dtype, rows: int, inputs: int, outputs: int) -> float:
    """Shortest seconds of a product with each of `TIMED_LAYERS` matrices of a stack, as a tick's layers take them."""
    form = Form(placed=True)

    @jax.jit
    def run(x: Array, stack: Array) -> Array:
        def layer(number: Array, total: Array) -> Array:
            return total + form.product(x, lax.dynamic_index_in_dim(stack, number, keepdims=False))

        total: Array = lax.fori_loop(0, TIMED_LAYERS, layer, jnp.zeros((rows, outputs), dtype))
        return total

    x, stack = jnp.ones((rows, inputs), dtype), jnp.ones((TIMED_LAYERS, outputs, inputs), dtype)
    jax.block_until_ready(run(x, stack))
    best = math.inf
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(run(x, stack))
        best = min(best, time.perf_counter() - began)
    return best
