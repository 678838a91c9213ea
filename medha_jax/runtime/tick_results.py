"""Reading the results of a tick or slice."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
from jax import Array

from medha_jax.plan import StepPlan, TokenResult
from medha_jax.runtime.packing import places
from medha_jax.runtime.sampler import Sampled
from medha_jax.specs.buckets import Bucket

NO_TOKEN = TokenResult(0)


@dataclass(frozen=True)
class TickHandle:
    """A dispatched tick. `leaving` is the plan that leaves the last stage; `sampled` may still be computing."""

    leaving: StepPlan
    bucket: Bucket
    sampled: Sampled


@dataclass(frozen=True)
class SliceHandle:
    """A dispatched slice. `leaving` has the chunks that are done with it; `done` may still be computing."""

    leaving: StepPlan
    done: Array


def slice_results(handle: SliceHandle) -> list[TokenResult]:
    """Wait for a slice on this process's devices; `NO_TOKEN` for each chunk that is done with it."""
    jax.block_until_ready(handle.done)
    return [NO_TOKEN] * len(handle.leaving.chunks)


def local_results(handle: TickHandle) -> dict[int, TokenResult]:
    """Wait for a tick; the results on this process's devices, by position in the leaving plan.

    If the plan has no `last` chunk, every result is `NO_TOKEN`.
    """
    chunks = handle.leaving.chunks
    if not chunks:
        return {}
    place = places(handle.leaving, handle.bucket)
    if not any(chunk.last for chunk in chunks):  # no result would be read
        jax.block_until_ready(handle.sampled)
        here = _local_groups(handle.sampled.token)
        return {number: NO_TOKEN for number, (group, _) in place.items() if group in here}
    got = jax.device_get(jax.tree.map(_local_groups, handle.sampled))

    def result(group: int, sample: int) -> TokenResult:
        parts = (getattr(got, field.name) for field in dataclasses.fields(Sampled))
        # without kept logits the array is empty and has no groups
        token, finite, logprob, top_token, top_logprob, logits = (
            p[group if group in p else 0][0, sample] for p in parts
        )
        top = zip(top_token.tolist(), top_logprob.tolist(), strict=True)
        return TokenResult(int(token), bool(finite), float(logprob), tuple(top), logits)

    return {number: result(*at) for number, at in place.items() if at[0] in got.token}


def _local_groups(array: Array) -> dict[int, Array]:
    """The parts of a result on this process's devices, by group."""
    return {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
