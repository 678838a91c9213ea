"""What an engine needs of a runtime, whether one process runs it or many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from medha_jax.config import RuntimeConfig
from medha_jax.plan import SamplingParams, StepPlan
from medha_jax.runtime.executor import TokenResult
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture
from medha_jax.specs.sizes import Sizes


class Executor(Protocol):
    """Runs plans: `MeshExecutor` on the devices of this process, `ClusterExecutor` on those of all."""

    config: RuntimeConfig
    arch: Architecture
    layout: Layout
    sizes: Sizes

    @property
    def context(self) -> int:
        """Most tokens of one request, prompt and output."""

    @property
    def pages(self) -> int:
        """Pages in each group's pool."""

    @property
    def per_group(self) -> int:
        """Tokens of one request that a group holds; without bound where there is one group only."""

    @property
    def prefix_cacheable(self) -> bool:
        """Whether the KV of a prefix is the same whatever follows it; not where RoPE follows the prompt's length."""

    @property
    def ahead(self) -> int:
        """Ticks that are dispatched before the results of those before them are read, where that pays."""

    def usable(self) -> bool:
        """After an error: whether the devices still hold what plans in flight and admitted requests need."""

    def renew(self) -> None:
        """After an error that took the devices' state: begin again with an empty one, and nothing in flight.

        Raises:
            RuntimeError: that cannot be done.
        """

    def admit(
        self,
        slot: int,
        sampling: SamplingParams,
        prompt: int,
        end_tokens: Sequence[int],
        prompted: Sequence[int] = (),
        generated: Sequence[int] = (),
    ) -> None:
        """Give `slot` to a request on every group."""

    def adopt(self, slot: int, group: int, pages: Sequence[int]) -> None:
        """Make pages that are filled already the first ones of an admitted request on a group.

        To be called before the request's first chunk, which then starts after them.
        """

    def submit(self, plan: StepPlan) -> Any:
        """Dispatch one tick; returns its handle, which names the plan that is `leaving`."""

    def collect(self, handle: Any) -> list[TokenResult]:
        """Wait for a tick; one result a chunk of its leaving plan, in order; `last` ones alone mean something."""
