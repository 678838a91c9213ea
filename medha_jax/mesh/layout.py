"""Sizes of the mesh axes and the mesh built from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

TENSOR, STAGE, GROUP = "tp", "spp", "kvp"
AXES = (STAGE, GROUP, TENSOR)


@dataclass(frozen=True)
class Layout:
    """How many devices each axis has: tensor (`tp`), pipeline stages (`spp`), KV groups (`kvp`)."""

    tp: int = 1
    spp: int = 1
    kvp: int = 1

    def __post_init__(self) -> None:
        for name in (TENSOR, STAGE, GROUP):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def devices(self) -> int:
        """Devices in the whole mesh, e.g. tp=8, spp=2 needs 16."""
        return self.tp * self.spp * self.kvp


def build_mesh(layout: Layout, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange devices as `[spp, kvp, tp]`, tensor neighbours innermost because they talk most.

    Raises:
        ValueError: there are fewer devices than the layout needs.
    """
    devices = list(devices if devices is not None else jax.devices())
    if len(devices) < layout.devices:
        raise ValueError(
            f"tp={layout.tp} x spp={layout.spp} x kvp={layout.kvp} needs {layout.devices} devices; "
            f"there are {len(devices)}"
        )
    grid = np.array(devices[: layout.devices]).reshape(layout.spp, layout.kvp, layout.tp)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
