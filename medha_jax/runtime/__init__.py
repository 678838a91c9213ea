"""The runtime: compiled ticks over a device mesh, behind `submit(plan)` and `collect(handle)`."""

from medha_jax.runtime.executor import MeshExecutor
from medha_jax.runtime.start import open_executor
from medha_jax.runtime.tick_results import TickHandle

__all__ = ["MeshExecutor", "TickHandle", "open_executor"]
