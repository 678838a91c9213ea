"""The shapes that programs exist for, and the order in which a server compiles them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from medha_jax.config import Buckets, MeshConfig
from medha_jax.specs.buckets import Bucket, all_buckets, slice_shapes


@dataclass(frozen=True)
class ShapeGrid:
    """All combinations of some padded sizes.

    Args:
        own: of each KV group's own rows.
        shared: of rows that all groups compute; None if there is only one group, or no request is spread.
    """

    own: Buckets
    shared: Buckets | None = None

    @classmethod
    def of(cls, mesh: MeshConfig) -> ShapeGrid:
        """Every shape of a layout."""
        return cls(mesh.buckets, mesh.spread_buckets)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The shapes of ticks."""
        return all_buckets(self.own, self.shared)

    @property
    def slice_buckets(self) -> tuple[Bucket, ...]:
        """The rows of slices."""
        return slice_shapes(self.own, self.shared)

    @property
    def growth(self) -> tuple[ShapeGrid, ...]:
        """The grids through which a server grows to this one, the last. Each has all shapes of the one before.

        The first has only the largest decode and prompt sizes, which hold every plan, and no slices, which none needs.
        Then the other decode sizes come, the other prompt sizes, and the slices.
        """

        def ticks(all_decodes: bool, all_prompts: bool) -> ShapeGrid:
            def some(sizes: Buckets) -> Buckets:
                decode, prefill = sizes.decode, sizes.prefill
                return replace(
                    sizes,
                    decode=decode if all_decodes else decode[-1:],
                    prefill=prefill if all_prompts else prefill[-1:],
                    slices=(),
                )

            return ShapeGrid(some(self.own), self.shared and some(self.shared))

        return tuple(dict.fromkeys((ticks(False, False), ticks(True, False), ticks(True, True), self)))
