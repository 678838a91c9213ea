"""What a deployment can run in one tick, as the scheduler sees it."""

from __future__ import annotations

from dataclasses import dataclass

from medha_jax.config import Buckets, MeshConfig
from medha_jax.specs.sizes import Sizes


@dataclass(frozen=True)
class TickShapes:
    """What a deployment can run in one tick.

    Args:
        own: padded sizes of the rows that each KV group has of its own.
        shared: sizes of the rows of requests that are spread over groups; equal to `own` where none is.
        groups: KV groups.
        per_group: tokens of one request that a group holds.
        page_size: tokens in a KV page.
        stages: pipeline stages; a token needs as many ticks.
        slots: requests that run at once.
        context: most tokens of one request, prompt and output.
    """

    own: Buckets
    shared: Buckets
    groups: int
    per_group: int
    page_size: int
    stages: int
    slots: int
    context: int

    @classmethod
    def of(cls, mesh: MeshConfig, sizes: Sizes, slots: int) -> TickShapes:
        """The shapes of a layout; without shared shapes no request is spread."""
        return cls(
            own=mesh.buckets,
            shared=mesh.shared_buckets or mesh.buckets,
            groups=mesh.kvp,
            per_group=sizes.per_group,
            page_size=mesh.page_size,
            stages=mesh.spp,
            slots=slots,
            context=sizes.context,
        )

    def buckets(self, start: int) -> Buckets:
        """Sizes of the rows of a chunk that starts at position `start`."""
        return self.own if start < self.per_group else self.shared

    def left_on_group(self, start: int) -> int:
        """Tokens from `start` to the end of the part that one group holds."""
        return self.per_group - start % self.per_group
