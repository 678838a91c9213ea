"""Exact attention over a paged KV pool: one contract, `(out, log-sum-exp)`, whatever computes it."""

from medha_jax.attention.merge import merge, pack
from medha_jax.attention.store import store
from medha_jax.attention.work import AttentionWork, Tiles
from medha_jax.attention.xla import BLOCK_TOKENS, attend

__all__ = ["BLOCK_TOKENS", "AttentionWork", "Tiles", "attend", "merge", "pack", "store"]
