"""Context parallelism: one prompt, unchunked, over several instances; KV passes round a ring (arXiv 2310.01889)."""

from __future__ import annotations

from collections.abc import Sequence

from medha_jax.simulate.cost import CostModel
from medha_jax.specs.buckets import Bucket, padded_segment


def ring_prefill(cost: CostModel, prompts: Sequence[int], degree: int) -> float:
    """Seconds until prompts that are computed together have their first tokens.

    Every instance has an equal share of the tokens, interleaved so that causal attention is balanced. It passes the KV
    of its share on `degree - 1` times while it computes: `max(attention, traffic)`.

    Args:
        cost: of one instance that holds the whole model, a mesh without stages or groups.
        prompts: tokens of each.
        degree: instances that share them.
    """
    sizes, hardware, used = cost.sizes, cost.hardware, cost.used
    tokens = -(-sum(prompts) // degree)
    attention = cost.attention_s * sum(prompt * (prompt + 1) / 2 for prompt in prompts) / degree
    link = hardware.near if sizes.mesh.tp * degree <= hardware.node else hardware.far
    one = tokens * sizes.kv_token_bytes / (used.link * link.bandwidth) + sizes.layers * link.latency
    shape = Bucket(padded_segment(sizes.mesh.buckets, 1, tokens))
    device = sum(cost.parts(shape).values()) + max(attention, (degree - 1) * one)
    return used.tick_s + max(sizes.layers * used.launch_s, device)
