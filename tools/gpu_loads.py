"""Loads of a runtime on any layout, each alone and timed: decodes, prompt chunks, and slices of layers.

Every request stays on one KV group, and every group has the same, so no group waits for another.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medha_jax.plan import Admission, Chunk, SamplingParams, Slice, StepPlan, TokenResult
from medha_jax.runtime import MeshExecutor
from medha_jax.specs.sizes import pages_for

LARGEST_PAGE = 128
GREEDY = SamplingParams(temperature=0)
EMPTY = StepPlan(())


@dataclass(frozen=True)
class LoadSizes:
    """What a load has of each, on one KV group.

    Args:
        decodes: requests that decode one token in each tick, each after `context` tokens.
        chunk: tokens of each chunk of a prompt of `chunks` of them; slices have the same chunks.
        ticks: of decodes that are timed.
    """

    decodes: int
    context: int
    chunk: int
    chunks: int
    ticks: int

    @property
    def pool_tokens(self) -> int:
        """Tokens of KV that these loads need in each group, one after another, in pages that divide LARGEST_PAGE."""
        each = -(-(self.context + 4 * self.ticks) // LARGEST_PAGE) * LARGEST_PAGE
        return max(self.decodes * each, -(-self.chunk * self.chunks // LARGEST_PAGE) * LARGEST_PAGE)


def decode_times(executor: MeshExecutor, sizes: LoadSizes) -> tuple[float, float]:
    """Seconds of a tick in which all requests decode, and of those the host's to dispatch one."""
    groups, page = executor.config.mesh.kvp, executor.config.mesh.page_size
    share = pages_for(sizes.context + 4 * sizes.ticks, page)
    place = [(group * sizes.decodes + nth, group, nth) for group in range(groups) for nth in range(sizes.decodes)]
    for slot, group, nth in place:
        executor.admit(Admission(slot, GREEDY, sizes.context))
        executor.adopt(slot, group, range(nth * share, (nth + 1) * share))

    def plans(begin: int, count: int) -> list[StepPlan]:
        return [
            StepPlan(tuple(Chunk(slot, at, 1, None, True, groups=(group,)) for slot, group, _ in place))
            for at in range(begin, begin + count)
        ]

    run(executor, plans(sizes.context, sizes.ticks))
    started = time.perf_counter()
    run(executor, plans(sizes.context + sizes.ticks, sizes.ticks))
    seconds = (time.perf_counter() - started) / sizes.ticks
    few = plans(sizes.context + 2 * sizes.ticks, max(1, sizes.ticks // 8))
    started = time.perf_counter()
    handles = [executor.submit(plan) for plan in few]
    host = (time.perf_counter() - started) / len(few)
    for handle in handles:
        executor.collect(handle)
    return seconds, host


def prompt_chunks(executor: MeshExecutor, sizes: LoadSizes) -> list[StepPlan]:
    """Plans of a prompt on each group, a chunk of each in every plan; slots and pages are given."""
    rng, groups, page = np.random.default_rng(0), executor.config.mesh.kvp, executor.config.mesh.page_size
    tokens = sizes.chunk * sizes.chunks
    ids = rng.integers(0, executor.vocab, tokens).tolist()
    for group in range(groups):
        executor.admit(Admission(group, GREEDY, tokens))
        executor.adopt(group, group, range(pages_for(tokens, page)))

    def chunk(group: int, nth: int) -> Chunk:
        at = nth * sizes.chunk
        last = nth == sizes.chunks - 1
        return Chunk(group, at, sizes.chunk, tuple(ids[at : at + sizes.chunk]), last, at // page, (), (group,))

    return [StepPlan(tuple(chunk(group, nth) for group in range(groups))) for nth in range(sizes.chunks)]


def prefill_seconds(executor: MeshExecutor, sizes: LoadSizes) -> float:
    """Seconds of a tick with a chunk on each group, over a prompt; the pipeline is full but at its ends."""
    plans = prompt_chunks(executor, sizes)
    run(executor, plans[:1])
    started = time.perf_counter()
    run(executor, plans)
    return (time.perf_counter() - started) / len(plans)


def slice_seconds(executor: MeshExecutor, sizes: LoadSizes, layers: int) -> float:
    """Seconds to take a chunk on each group through a stage in slices of so many layers; the last one takes the rest.

    The last chunk that slices may compute is the last but one of the prompt.
    """
    *plans, _ = prompt_chunks(executor, sizes)
    rounds(executor, plans[:1], layers)
    started = time.perf_counter()
    rounds(executor, plans, layers)
    return (time.perf_counter() - started) / len(plans)


def final_logits_of(executor: MeshExecutor, sizes: LoadSizes, layers: int | None) -> np.ndarray:
    """Logits of the token after a prompt on each group, whose chunks but the last run in slices, or all in ticks.

    The executor must keep logits.
    """
    *plans, last = prompt_chunks(executor, sizes)
    if layers is None:
        run(executor, plans)
    else:
        rounds(executor, plans, layers)
    results = run(executor, [last])
    return np.stack([np.asarray(result.logits) for result in results])


def rounds(executor: MeshExecutor, plans: Sequence[StepPlan], layers: int) -> None:
    """Take plans through all stages in slices, and wait for the last."""
    stages, total = executor.config.mesh.spp, executor.slice_lengths[-1]
    held = [EMPTY] * stages
    flight: deque[Any] = deque()
    for plan in (*plans, *[EMPTY] * (stages - 1)):
        held = [plan, *held[: stages - 1]]
        for first, past in spans(total, layers, executor.slice_lengths):
            flight.append(executor.submit_slice(Slice(tuple(held), first, past)))
            if len(flight) > executor.ahead:
                executor.collect(flight.popleft())
    for handle in flight:
        executor.collect(handle)


def spans(total: int, layers: int, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """A stage's layers in slices of `layers`; what is left at the end in the longest slices that there are."""
    found, first = [], 0
    while first < total:
        left = total - first
        length = layers if layers <= left else max(length for length in lengths if length <= left)
        found.append((first, first + length))
        first += length
    return found


def run(executor: MeshExecutor, plans: Iterable[StepPlan]) -> list[TokenResult]:
    """Run plans through all stages, as many ahead as the engine has, and wait; the results of the last that has any."""
    flight: deque[Any] = deque()
    results = list[TokenResult]()
    for plan in (*plans, *[EMPTY] * (executor.config.mesh.spp - 1)):
        flight.append(executor.submit(plan))
        if len(flight) > executor.ahead:
            results = executor.collect(flight.popleft()) or results
    for handle in flight:
        results = executor.collect(handle) or results
    return results
