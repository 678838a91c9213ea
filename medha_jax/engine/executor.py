"""What an engine needs of a runtime, whether one process runs it, many do, or it is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from medha_jax.config import RuntimeConfig
from medha_jax.plan import Admission, StepPlan, TokenResult
from medha_jax.specs.sizes import Sizes


class Executor(Protocol):
    """Runs plans: `MeshExecutor`, `ClusterExecutor` for a mesh over several processes, or `SimulatedExecutor`."""

    @property
    def config(self) -> RuntimeConfig:
        """Mesh, compiled shapes and slots."""

    @property
    def sizes(self) -> Sizes:
        """Context, pages of a group's pool, and tokens of one request that a group holds."""

    @property
    def vocab(self) -> int:
        """Entries of the model's vocabulary."""

    @property
    def prefix_cacheable(self) -> bool:
        """Whether the KV of a prefix is the same whatever follows it; false where RoPE follows the prompt's length."""

    @property
    def ahead(self) -> int:
        """Ticks to dispatch before the results of earlier ones are read."""

    def usable(self) -> bool:
        """After an error: whether the devices still hold what plans in flight and admitted requests need."""

    def renew(self) -> None:
        """After an error that took the devices' state: begin again with an empty one, and nothing in flight.

        Raises:
            RuntimeError: that cannot be done.
        """

    def admit(self, admission: Admission) -> None:
        """Give a slot to a request on every group."""

    def adopt(self, slot: int, group: int, pages: Sequence[int]) -> None:
        """Make pages that are filled already the first ones of an admitted request on a group.

        To be called before the request's first chunk, which then starts after them.
        """

    def submit(self, plan: StepPlan) -> Any:
        """Dispatch one tick, in which `plan` enters the pipeline; returns a handle for `collect`."""

    def collect(self, handle: Any) -> list[TokenResult]:
        """Wait for a tick; one result for each chunk of the plan that left in it, in order."""
