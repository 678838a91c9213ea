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

    `context` is the model's context limit in tokens.
    """
    context = min(config.max_context or context, context)
    tokens = longest_request = 0
    lengths: set[int] = set()
    for request in requests:
        prompt = len(request.prompt_ids)
        length = min(prompt + (request.sampling.max_tokens or context), context)
        tokens, longest_request = tokens + length + config.mesh.page_size, max(longest_request, length)
        lengths.update(chunk_lengths(prompt, request.chunks or (AUTO_CHUNK,)))
    sizes = {smallest_size(PREFILL_SIZES, min(length, PREFILL_SIZES[-1])) for length in lengths if length > 1}
    buckets = Buckets(
        decode=tuple(sorted({1, len(requests)})), prefill=tuple(sorted(sizes)) or PREFILL_SIZES[:1], slices=(), chunks=1
    )
    per_group = config.mesh.tokens_per_group
    spread = config.mesh.kvp > 1 and per_group is not None and longest_request > per_group
    mesh = dataclasses.replace(config.mesh, buckets=buckets, shared_buckets=buckets if spread else None)
    pool = min(tokens, per_group * len(requests)) if spread and per_group else tokens
    most = min(context, config.mesh.kvp * pool if spread else pool)
    return dataclasses.replace(config, slots=len(requests), pool_tokens=pool, mesh=mesh, max_context=most)
