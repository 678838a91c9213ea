"""The shapes of compiled programs: of ticks a `Bucket`, of slices a `SliceShape`."""

from __future__ import annotations

from typing import NamedTuple

from medha_jax.specs.buckets import Bucket


class SliceShape(NamedTuple):
    """The shape of one compiled slice.

    Args:
        bucket: its rows, of prompt chunks only.
        length: its layers; None for a program that runs any number of them.
    """

    bucket: Bucket
    length: int | None = None

    def __str__(self) -> str:
        layers = "" if self.length is None else f" of {self.length} layer{'s' * (self.length > 1)}"
        return f"slice {self.bucket}{layers}"


Shape = Bucket | SliceShape


def rows_of_shape(shape: Shape) -> Bucket:
    """The rows of a program of either kind."""
    return shape.bucket if isinstance(shape, SliceShape) else shape
