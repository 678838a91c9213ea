"""A runtime no larger than a few known requests need, so one-off commands start fast."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from medha_jax.config import Buckets, RuntimeConfig
from medha_jax.engine.admission import chunk_lengths
from medha_jax.engine.events import GenerationRequest
from medha_jax.specs.buckets import smallest_size

PREFILL_SIZES = (16, 64, 256, 1024, 2048, 4096, 8192)
AUTO_CHUNK = 1024


def sized_for(config: RuntimeConfig, requests: Sequence[GenerationRequest], context: int) -> RuntimeConfig:
    """Shrink slots, pool, context and compiled shapes to what these requests use, at once or one after the other.

    The further outputs of a request share the pages of its prompt, unless it is spread over several KV groups.
    `context` is the model's context limit in tokens.
    """
    context, page = min(config.max_context or context, context), config.mesh.page_size
    tokens = longest_request = further = shared = 0
    lengths: set[int] = set()
    for request in requests:
        prompt = len(request.prompt_ids)
        length = min(prompt + (request.sampling.max_tokens or context), context)
        tokens, longest_request = tokens + length + page, max(longest_request, length)
        # beside its last page, one that is kept for growth
        further += (request.n - 1) * (length + 2 * page)
        shared += (request.n - 1) * ((prompt - 1) // page * page)
        lengths.update(chunk_lengths(prompt, request.chunks or (AUTO_CHUNK,)))
    sizes = {smallest_size(PREFILL_SIZES, min(length, PREFILL_SIZES[-1])) for length in lengths if length > 1}
    outputs = sum(request.n for request in requests)
    buckets = Buckets(
        decode=tuple(sorted({1, outputs})), prefill=tuple(sorted(sizes)) or PREFILL_SIZES[:1], slices=(), chunks=1
    )
    per_group = config.mesh.tokens_per_group
    spread = config.mesh.kvp > 1 and per_group is not None and longest_request > per_group
    mesh = dataclasses.replace(config.mesh, buckets=buckets, shared_buckets=buckets if spread else None)
    tokens += further - (0 if spread else shared)
    pool = min(tokens, per_group * outputs) if spread and per_group else tokens
    most = min(context, config.mesh.kvp * pool if spread else pool)
    return dataclasses.replace(config, slots=outputs, pool_tokens=pool, mesh=mesh, max_context=most)
