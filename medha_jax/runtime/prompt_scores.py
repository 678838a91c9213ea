"""Log-probabilities of prompt tokens, from the hidden states that a tick or a slice leaves.

One program for blocks of rows: the norm, this device's share of the head, and the log-sum-exp over all shares. It reads
the hidden states of the last stage, so a prompt that nobody asks about costs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from medha_jax.mesh import (
    from_last_stage,
    gather_vocabulary,
    max_over_vocabulary,
    parameter_spec,
    per_group,
    register_spec,
    sum_over_vocabulary,
    vocabulary_start,
)
from medha_jax.models import final_logits
from medha_jax.plan import MAX_LOGPROBS, PromptScores, ScoreQuery
from medha_jax.runtime.packing import first_rows
from medha_jax.runtime.parameter_placement import head_of, head_share
from medha_jax.runtime.programs import Programs
from medha_jax.runtime.tick_results import Scoring, SliceHandle, TickHandle
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture
from medha_jax.token_ids import array_of

CPU_BLOCK, GPU_BLOCK = 64, 256  # rows; a block's logits are kept in fp32
ScoreFunction = Callable[[Mapping[str, Array], Array, Array, Array], Array]


class _Asked(NamedTuple):
    """A query's rows among those asked of its group, from `at` on."""

    group: int
    at: int


def build_scoring(arch: Architecture, layout: Layout) -> ScoreFunction:
    """Make the function of a block: `(parameters, hidden, asked, listed) -> answers`, under `shard_map`.

    `hidden` is as in `TickOutput`. `asked` int32 `[1, rows, 2]` has, for this group, rows of `hidden` and the token
    whose log-probability is wanted. `listed` says whether any row wants the likeliest tokens, too. `answers` int32
    `[1, rows, 1 + 2 * width]` are the bits of the log-probability, the likeliest tokens, and the bits of theirs.
    """
    width = min(MAX_LOGPROBS, arch.vocab)

    def score(parameters: Mapping[str, Array], hidden: Array, asked: Array, listed: Array) -> Array:
        rows, wanted = asked[0, :, 0], asked[0, :, 1]
        head = head_share(parameters, arch, layout)
        x = from_last_stage(hidden[0, 0, rows], layout)
        logits = final_logits(x, parameters["norm.scale"], head, arch.norm_epsilon)
        part = logits.shape[1]
        start = vocabulary_start(part, layout)
        logits = jnp.where(start + jnp.arange(part) < arch.vocab, logits, -jnp.inf)

        largest = max_over_vocabulary(logits.max(-1), layout)
        total = sum_over_vocabulary(jnp.exp(logits - largest[:, None]).sum(-1), layout)
        scale = largest + jnp.log(total)
        local = wanted - start
        own = jnp.take_along_axis(logits, jnp.clip(local, 0, part - 1)[:, None], -1)[:, 0]
        here = (local >= 0) & (local < part)
        logprob = sum_over_vocabulary(jnp.where(here, own, 0), layout) - scale

        few = min(width, part)

        def likeliest() -> tuple[Array, Array]:
            values, places = lax.top_k(logits, few)
            return values, (places + start).astype(jnp.int32)

        def nothing() -> tuple[Array, Array]:
            return jnp.zeros((rows.shape[0], few)), jnp.zeros((rows.shape[0], few), jnp.int32)

        values, tokens = (gather_vocabulary(x, layout) for x in lax.cond(listed, likeliest, nothing))
        # shares lie in order of their token ids, so that the lower of two equal ones stays first
        best, at = lax.top_k(values, width)
        floats = lax.bitcast_convert_type(jnp.concatenate([logprob[:, None], best - scale[:, None]], 1), jnp.int32)
        return jnp.concatenate([floats[:, :1], jnp.take_along_axis(tokens, at, -1), floats[:, 1:]], 1)[None]

    return score


class PromptScorer:
    """Owns the compiled program that scores blocks of rows, and asks it. Made once, before a runtime runs."""

    def __init__(self, programs: Programs, parameters: Mapping[str, Array]) -> None:
        self._programs = programs
        self._parameters = {name: parameters[name] for name in ("norm.scale", head_of(programs.arch))}
        self._rows = CPU_BLOCK if programs.on_cpu else GPU_BLOCK
        options: Any = programs.compiler_options or None
        self._program = self._lower().compile(options)

    def dispatch(self, handle: TickHandle | SliceHandle, queries: Mapping[int, ScoreQuery]) -> Scoring:
        """Ask about rows of the chunks that leave with a tick or slice, by their place in that plan."""
        assert handle.hidden is not None, "the runtime was made to score prompts"
        groups, first = first_rows(handle.columns, handle.bucket)
        of_group: list[list[np.ndarray]] = [[] for _ in range(self._programs.layout.kvp)]
        count, asked = [0] * len(of_group), list[_Asked]()
        for place, query in queries.items():
            rows, group = len(query.following), groups[place]
            at = first[place]
            of_group[group].append(np.stack([np.arange(at, at + rows), array_of(query.following)], 1))
            asked.append(_Asked(group, count[group]))
            count[group] += rows
        blocks = -(-max(count) // self._rows)
        packed = np.zeros((len(of_group), blocks * self._rows, 2), np.int32)
        for group, parts in enumerate(of_group):
            if parts:
                packed[group, : count[group]] = np.concatenate(parts)
        listed = np.array(any(query.top for query in queries.values()))
        answers = [
            self._program(self._parameters, handle.hidden, packed[:, at : at + self._rows], listed)
            for at in range(0, packed.shape[1], self._rows)
        ]
        return Scoring(queries, asked, answers)

    def _lower(self) -> jax.stages.Lowered:
        programs = self._programs
        arch, layout, mesh = programs.arch, programs.layout, programs.mesh
        shapes = {name: programs.parameter_shapes[name] for name in self._parameters}
        asked = jax.ShapeDtypeStruct((layout.kvp, self._rows, 2), jnp.int32, sharding=programs.placed(per_group()))
        listed = jax.ShapeDtypeStruct((), jnp.bool_, sharding=programs.placed(parameter_spec(())))
        mapped = jax.shard_map(
            build_scoring(arch, layout),
            mesh=mesh,
            in_specs=(
                {name: shape.sharding.spec for name, shape in shapes.items()},
                register_spec(),
                per_group(),
                parameter_spec(()),
            ),
            out_specs=per_group(),
            check_vma=False,
        )
        with programs.matmul_precision():
            return jax.jit(mapped).lower(shapes, programs.hidden_shape, asked, listed)


def read_scores(scoring: Scoring, starts: Mapping[int, int]) -> dict[int, PromptScores]:
    """Wait for answers; those of each chunk by its place. `starts` are the positions of the chunks' first rows."""
    answers = np.concatenate([np.asarray(block) for block in scoring.answers], 1)
    width = (answers.shape[2] - 1) // 2
    found = {}
    for (place, query), (group, at) in zip(scoring.queries.items(), scoring.places, strict=True):
        rows = np.ascontiguousarray(answers[group, at : at + len(query.following)])
        floats = rows.view(np.float32)
        found[place] = PromptScores(
            starts[place] + 1,
            np.array(array_of(query.following)),
            floats[:, 0].copy(),
            rows[:, 1 : 1 + query.top].copy(),
            floats[:, 1 + width : 1 + width + query.top].copy(),
        )
    return found
