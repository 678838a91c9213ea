"""The interface of a runtime that an engine drives: one process, several, or a simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from medha_jax.config import RuntimeConfig
from medha_jax.plan import Admission, HostTier, PageCopy, ScoreQuery, Slice, StepPlan, TokenResult
from medha_jax.specs.shape_grid import ShapeGrid
from medha_jax.specs.sizes import Sizes

if TYPE_CHECKING:
    import numpy as np


class Executor(Protocol):
    """Runs plans: `MeshExecutor`, `ClusterExecutor` for a mesh over several processes, or `SimulatedExecutor`."""

    @property
    def config(self) -> RuntimeConfig:
        """Mesh, compiled shapes and slots."""

    @property
    def sizes(self) -> Sizes:
        """Context in tokens, pages of a group's pool, and tokens of one request that a group holds."""

    @property
    def vocab(self) -> int:
        """Entries of the model's vocabulary."""

    @property
    def prefix_cacheable(self) -> bool:
        """Whether the KV of a prefix is the same under every continuation; false if RoPE depends on the length."""

    @property
    def ahead(self) -> int:
        """Ticks that may be dispatched before the results of earlier ones are read."""

    @property
    def slice_lengths(self) -> tuple[int, ...]:
        """Numbers of layers that a slice may have, increasing; the last one is all layers of a stage."""

    @property
    def grid(self) -> ShapeGrid:
        """The shapes that plans take now."""

    @property
    def host(self) -> HostTier:
        """Host memory for KV pages."""

    def usable(self) -> bool:
        """After an error: whether the devices still hold the state of plans in flight and admitted requests."""

    def renew(self) -> None:
        """After an error that lost the devices' state: begin again with an empty state and nothing in flight.

        Raises:
            RuntimeError: that is not possible.
        """

    def grow(self) -> ShapeGrid | None:
        """Begin to use shapes that have become ready since the last call; returns the new grid, None if there are none.

        Call it between two ticks. The new grid has all shapes of the one before. Plans in flight stay valid.
        """

    def admit(self, admission: Admission) -> None:
        """Give a slot to a request on every group."""

    def set_masks(self, slots: Sequence[int], masks: np.ndarray) -> None:
        """Let slots sample the tokens of `masks` only, uint32 `[slots, mask_words]`, from the next `submit` on.

        It counts until the slot's next mask, or until somebody is admitted to it.
        """

    def adopt(self, slot: int, group: int, pages: Sequence[int]) -> None:
        """Make filled pages the first ones of an admitted request on a group.

        Call it before the request's first chunk, which then starts after these pages.
        """

    def copy_pages(self, copies: Sequence[PageCopy]) -> None:
        """Copy KV pages to and from host memory, in this order, before what is submitted next.

        After an error the state counts as lost.
        """

    def submit(self, plan: StepPlan) -> Any:
        """Dispatch one tick in which `plan` enters the pipeline; returns a handle for `collect`."""

    def submit_slice(self, work: Slice) -> Any:
        """Dispatch a slice; returns a handle for `collect`."""

    def score(self, handle: Any, queries: Mapping[int, ScoreQuery]) -> Any:
        """Ask about chunks that leave with a tick or slice, by their place in its leaving plan.

        Call it right after `submit` or `submit_slice`; returns the handle for `collect`, whose results have the scores.

        Raises:
            ValueError: `config.prompt_logprobs` is false.
        """

    def collect(self, handle: Any) -> list[TokenResult]:
        """Wait for a tick or slice; returns one result for each chunk that left the last stage in it, in order.

        Results of a slice have no token.
        """
