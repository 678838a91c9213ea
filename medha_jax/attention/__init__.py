"""Exact attention over a paged KV pool. Every implementation returns `(out, log-sum-exp)`."""

from medha_jax.attention.gpu.fields import KernelWork
from medha_jax.attention.gpu.items import list_tiles, plan_items
from medha_jax.attention.gpu.launch import GpuTarget, Launch, LaunchError
from medha_jax.attention.implementations import KernelAttention, LlvmAttention, XlaAttention, choose
from medha_jax.attention.interface import Attention, PlanField, RowRun, TickRows, WorkLayout
from medha_jax.attention.merge import merge, pack
from medha_jax.attention.pool import Fp8Pool, Pool, empty_pool, values_of
from medha_jax.attention.store import store
from medha_jax.attention.work_list import AttentionWork, Tiles
from medha_jax.attention.xla import attend

__all__ = [
    "Attention",
    "AttentionWork",
    "Fp8Pool",
    "GpuTarget",
    "KernelAttention",
    "KernelWork",
    "Launch",
    "LaunchError",
    "LlvmAttention",
    "PlanField",
    "Pool",
    "RowRun",
    "TickRows",
    "Tiles",
    "WorkLayout",
    "XlaAttention",
    "attend",
    "choose",
    "empty_pool",
    "list_tiles",
    "merge",
    "pack",
    "plan_items",
    "store",
    "values_of",
]
