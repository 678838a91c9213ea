"""The results of a tick or slice: one array, and reading it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from medha_jax.plan import ScoreQuery, StepPlan, TokenResult
from medha_jax.runtime.packing import places
from medha_jax.runtime.plan_columns import PlanColumns
from medha_jax.runtime.sampler import Sampled
from medha_jax.specs.buckets import Bucket

NO_TOKEN = TokenResult(0)
SPOILED = TokenResult(0, finite=False)  # of a chunk that met a value that is not finite
NO_LOGITS = np.zeros(0, np.float32)
FINITE, WANTED = 1, 2  # bits of a row's state
FIXED = 3  # columns before the likeliest tokens: token, state, log-probability


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TickOutput:
    """What a tick returns. A host reads one array, because every further one costs it time.

    Args:
        values: token, state, log-probability, the likeliest tokens, their log-probabilities; floats as their bits.
        logits: as in `Sampled`.
        hidden: of each stage after its layers, before the head, padded with rows; None unless prompts are scored.
    """

    values: Int[Array, "samples columns"]
    logits: Float[Array, "samples vocab"]
    hidden: Float[Array, "stages groups rows embed"] | None = None

    @classmethod
    def of(cls, sampled: Sampled) -> TickOutput:
        """Pack the tokens of a tick, traced."""
        state = FINITE * sampled.finite + WANTED * sampled.wanted
        bits = (lax.bitcast_convert_type(x, jnp.int32) for x in (sampled.logprob[:, None], sampled.top_logprob))
        logprob, top_logprob = bits
        columns = (sampled.token[:, None], state[:, None], logprob, sampled.top_token, top_logprob)
        return cls(jnp.concatenate(columns, axis=1, dtype=jnp.int32), sampled.logits)


@dataclass(frozen=True)
class TickHandle:
    """A dispatched tick. `columns` are of the plan that leaves the last stage; `output` may still be computing.

    `scoring` has what was asked of its prompt rows.
    """

    columns: PlanColumns
    bucket: Bucket
    output: TickOutput
    scoring: Scoring | None = None

    @property
    def leaving(self) -> StepPlan:
        """The plan that leaves the last stage."""
        return self.columns.plan

    @property
    def hidden(self) -> Array | None:
        """As in `TickOutput`."""
        return self.output.hidden


@dataclass(frozen=True)
class SliceHandle:
    """A dispatched slice. `leaving` has the chunks that are done with it.

    `done` `[stages, groups, samples, 1]` says which chunks of each stage are finite; it may still be computing.
    `hidden` and `scoring` are as in `TickOutput` and `TickHandle`.
    """

    leaving: StepPlan
    bucket: Bucket
    done: Array
    hidden: Array | None = None
    scoring: Scoring | None = None

    @property
    def columns(self) -> PlanColumns:
        """The chunks that are done, by columns."""
        return PlanColumns.of(self.leaving)


@dataclass(frozen=True)
class Scoring:
    """Questions about prompt rows of a tick or slice, and their answers, which may still be computing.

    Args:
        queries: by place of the chunk in the plan that leaves.
        places: for each query in order, its group and the place of its first row among those asked of this group.
        answers: one array for each block of rows, as of `prompt_scores.build_scoring`.
    """

    queries: Mapping[int, ScoreQuery]
    places: Sequence[tuple[int, int]]
    answers: Sequence[Array]


def slice_results(handle: SliceHandle) -> list[TokenResult]:
    """Wait for a slice on this process's devices; `NO_TOKEN` or `SPOILED` for each chunk that is done with it.

    A last stage or a group on devices of another process is not looked at here.
    """
    jax.block_until_ready(handle.done)
    if not handle.leaving.chunks:
        return []
    last = handle.done.shape[0] - 1
    finite = {
        shard.index[1].start or 0: np.asarray(shard.data)[0, 0, :, 0]
        for shard in handle.done.addressable_shards
        if (shard.index[0].start or 0) == last
    }
    groups, samples = places(PlanColumns.of(handle.leaving), handle.bucket)
    seen = zip(map(finite.get, groups), samples, strict=True)
    return [NO_TOKEN if known is None or known[sample] else SPOILED for known, sample in seen]


def local_results(handle: TickHandle) -> dict[int, TokenResult]:
    """Wait for a tick; the results on this process's devices, by position in the leaving plan.

    If the plan has no `last` chunk, every result is `NO_TOKEN`, or `SPOILED`.
    """
    columns = handle.columns
    if not columns.plan.chunks:
        return {}
    groups, samples = places(columns, handle.bucket)
    values = _read(handle.output.values)
    if not any(chunk.last for chunk in columns.plan.chunks):  # no token would be read
        at = enumerate(zip(groups, samples, strict=True))
        return {
            number: NO_TOKEN if values[group][sample, 1] & FINITE else SPOILED
            for number, (group, sample) in at
            if group in values
        }
    kept, results = _read(handle.output.logits), dict[int, TokenResult]()
    for group, rows in values.items():
        numbers = [number for number, of in enumerate(groups) if of == group]
        mine = [samples[number] for number in numbers]
        results |= zip(numbers, _results(rows, kept.get(group), mine), strict=True)
    return results


def _results(rows: np.ndarray, logits: np.ndarray | None, samples: Sequence[int]) -> list[TokenResult]:
    """The results at some samples of a group's `TickOutput.values`."""
    chosen = rows[:, :2].tolist()
    pairs = [chosen[sample] for sample in samples]
    kept = [NO_LOGITS] * len(pairs) if logits is None else logits[samples]
    both = zip(pairs, kept, strict=True)
    found = [TokenResult(token, state & FINITE > 0, 0.0, (), row) for (token, state), row in both]
    for number in [number for number, (_, state) in enumerate(pairs) if state & WANTED]:
        row = rows[samples[number]]
        width = (len(row) - FIXED) // 2
        logprobs = row.view(np.float32)
        top = zip(row[FIXED : FIXED + width].tolist(), logprobs[FIXED + width :].tolist(), strict=True)
        found[number] = found[number]._replace(logprob=float(logprobs[2]), top=tuple(top))
    return found


def _read(array: Array) -> dict[int, np.ndarray]:
    """Wait for a result; its parts on this process's devices `[samples, ...]`, by group."""
    if not array.size:
        return {}
    if array.is_fully_replicated:  # as with one group; looking at every device's part takes longer
        return dict(enumerate(np.asarray(array)))
    return {shard.index[0].start or 0: np.asarray(shard.data)[0] for shard in array.addressable_shards}
