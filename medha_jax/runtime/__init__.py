"""The runtime: compiled ticks over a device mesh, behind `submit(plan)` and `collect(handle)`."""

from medha_jax.runtime.executor import MeshExecutor, TickHandle, TokenResult
from medha_jax.runtime.interface import Executor
from medha_jax.runtime.start import open_executor

__all__ = ["Executor", "MeshExecutor", "TickHandle", "TokenResult", "open_executor"]
