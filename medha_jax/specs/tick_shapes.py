"""The rows that fit one tick, for the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, replace

from medha_jax.config import Buckets, MeshConfig
from medha_jax.specs.shape_grid import ShapeGrid
from medha_jax.specs.sizes import Sizes


@dataclass(frozen=True)
class TickShapes:
    """The rows that fit one tick of a deployment.

    Args:
        own: padded sizes of each KV group's own rows.
        shared: padded sizes of the rows of spread requests; equal to `own` if no request is spread.
        per_group: tokens of one request that a group holds.
        page_size: tokens in a KV page.
        stages: pipeline stages; a token needs one tick for each.
        slots: most requests that run at once.
        context: most tokens of one request, prompt and output.
        slice_lengths: numbers of layers that a slice may have, increasing; the last one is all layers of a stage.
    """

    own: Buckets
    shared: Buckets
    groups: int
    per_group: int
    page_size: int
    stages: int
    slots: int
    context: int
    slice_lengths: tuple[int, ...] = (1,)

    @classmethod
    def of(cls, mesh: MeshConfig, sizes: Sizes, slots: int, slice_lengths: tuple[int, ...] = (1,)) -> TickShapes:
        """The shapes of a layout; without shared shapes no request is spread over groups."""
        return cls(
            own=mesh.buckets,
            shared=mesh.shared_buckets or mesh.buckets,
            groups=mesh.kvp,
            per_group=sizes.per_group,
            page_size=mesh.page_size,
            stages=mesh.spp,
            slots=slots,
            context=sizes.context,
            slice_lengths=slice_lengths,
        )

    def on(self, grid: ShapeGrid) -> TickShapes:
        """The same deployment with the shapes of another grid."""
        return replace(self, own=grid.own, shared=grid.shared or grid.own)

    def buckets(self, start: int) -> Buckets:
        """Row sizes for a chunk that starts at position `start`."""
        return self.own if start < self.per_group else self.shared

    @property
    def layers(self) -> int:
        """Layers of a stage."""
        return self.slice_lengths[-1]

    def left_on_group(self, start: int) -> int:
        """Tokens from `start` to the end of its group's part."""
        return self.per_group - start % self.per_group
