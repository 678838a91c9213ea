"""Sizes of the mesh axes, what a model's sizes become on them, and the mesh itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from medha_jax.config import GROUP, STAGE, TENSOR, patient_cpu_collectives

AXES = (STAGE, GROUP, TENSOR)


class LayoutError(ValueError):
    """A layout does not fit the devices, the model or the memory; the message has the numbers."""


@dataclass(frozen=True)
class Layout:
    """How many devices each axis has: tensor (`tp`), pipeline stages (`spp`), KV groups (`kvp`)."""

    tp: int = 1
    spp: int = 1
    kvp: int = 1

    def __post_init__(self) -> None:
        for name in (TENSOR, STAGE, GROUP):
            if getattr(self, name) < 1:
                raise LayoutError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def __str__(self) -> str:
        return f"{TENSOR}={self.tp},{STAGE}={self.spp},{GROUP}={self.kvp}"

    @property
    def devices(self) -> int:
        """Devices in the whole mesh, e.g. tp=8, spp=2 needs 16."""
        return self.tp * self.spp * self.kvp

    def padded_layers(self, layers: int) -> int:
        """Layers after filling up the last stages with layers of zeros, which change nothing: 5 on 4 stages are 8."""
        return -(-layers // self.spp) * self.spp

    def padded_vocab(self, vocab: int) -> int:
        """Vocabulary after filling up to a multiple of the devices that share it."""
        share = self.tp * self.spp
        return -(-vocab // share) * share

    def expanded_kv_heads(self, kv_heads: int) -> int:
        """KV heads after repeating them so that each tensor position has one: 4 on tp=8 are 8."""
        return max(kv_heads, self.tp)

    def misfits(self, heads: int, kv_heads: int, ffn: int, layers: int) -> list[str]:
        """What of a model cannot be divided over this layout, with the numbers; empty if all can."""
        found = [
            f"{name} {size} is not divisible by {TENSOR}={self.tp}"
            for name, size in (("heads", heads), ("FFN width", ffn))
            if size % self.tp
        ]
        if max(kv_heads, self.tp) % min(kv_heads, self.tp):
            found.append(f"KV heads {kv_heads} and {TENSOR}={self.tp} do not divide one another")
        if self.spp > layers:
            found.append(f"{STAGE}={self.spp} is more than {layers} layers")
        return found


def nearest_layouts(layout: Layout, fits: Callable[[Layout], bool], devices: int, most: int = 3) -> list[Layout]:
    """Layouts of at most `devices` devices that fit, those with most devices and least change first."""

    def distance(other: Layout) -> tuple[float, float]:
        change = sum(abs(math.log2(a / b)) for a, b in zip(astuple(layout), astuple(other), strict=True))
        return change + 2 * abs(math.log2(min(layout.devices, devices) / other.devices)), change

    sizes = [1 << power for power in range(devices.bit_length())]
    candidates = [Layout(t, s, k) for t in sizes for s in sizes for k in sizes if t * s * k <= devices]
    return sorted((other for other in candidates if other != layout and fits(other)), key=distance)[:most]


def request_cpu_devices(count: int) -> None:
    """Ask for virtual CPU devices; without effect on other platforms, and once a backend has started."""
    patient_cpu_collectives()
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def build_mesh(layout: Layout, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange devices as `[spp, kvp, tp]`, tensor neighbours innermost because they talk most.

    Raises:
        LayoutError: there are fewer devices than the layout needs.
    """
    devices = list(devices if devices is not None else jax.devices())
    if len(devices) < layout.devices:
        raise LayoutError(f"{layout} needs {layout.devices} devices; there are {len(devices)}")
    grid = np.array(devices[: layout.devices]).reshape(layout.spp, layout.kvp, layout.tp)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
