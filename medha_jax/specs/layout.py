"""Sizes of the mesh axes, and the sizes of a model on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass

from medha_jax.config import STAGE, TENSOR, Axes
from medha_jax.specs.model import Architecture


class LayoutError(ValueError):
    """A layout does not fit the devices, the model or the memory; the message has the numbers."""


@dataclass(frozen=True)
class Layout(Axes):
    """How a model is divided over the axes of a mesh."""

    @classmethod
    def of(cls, axes: Axes) -> Layout:
        """The layout of a mesh's settings."""
        return cls(axes.tp, axes.spp, axes.kvp)

    def padded_layers(self, layers: int) -> int:
        """Layers after padding the last stages with layers of zeros, which change nothing: 5 on 4 stages become 8."""
        return -(-layers // self.spp) * self.spp

    def padded_vocab(self, vocab: int) -> int:
        """Vocabulary after padding to a multiple of the devices that share it."""
        share = self.tp * self.spp
        return -(-vocab // share) * share

    def expanded_kv_heads(self, kv_heads: int) -> int:
        """KV heads, repeated so that each tensor position has one: 4 on tp=8 become 8."""
        return max(kv_heads, self.tp)

    def misfits(self, arch: Architecture) -> list[str]:
        """Sizes of a model that this layout cannot divide, with the numbers; empty if it fits."""
        found = [
            f"{name} {size} is not divisible by {TENSOR}={self.tp}"
            for name, size in (("heads", arch.heads), ("FFN width", arch.ffn))
            if size % self.tp
        ]
        if max(arch.kv_heads, self.tp) % min(arch.kv_heads, self.tp):
            found.append(f"KV heads {arch.kv_heads} and {TENSOR}={self.tp} do not divide one another")
        if self.spp > arch.layers:
            found.append(f"{STAGE}={self.spp} is more than {arch.layers} layers")
        return found


def check_layout(arch: Architecture, layout: Layout) -> None:
    """Check that a layout can divide a model.

    Raises:
        LayoutError: names every number that does not fit, and the nearest layouts that do.
    """
    if found := layout.misfits(arch):
        near = nearest_layouts(layout, lambda other: not other.misfits(arch), layout.devices)
        raise LayoutError(
            f"the model does not fit {layout}: {'; '.join(found)}. What fits: {' or '.join(map(str, near)) or 'none'}"
        )


def nearest_layouts(layout: Layout, fits: Callable[[Layout], bool], devices: int, most: int = 3) -> list[Layout]:
    """Fitting layouts of at most `devices` devices, sorted by most devices and least change."""

    def distance(other: Layout) -> tuple[float, float]:
        change = sum(abs(math.log2(a / b)) for a, b in zip(astuple(layout), astuple(other), strict=True))
        return change + 2 * abs(math.log2(min(layout.devices, devices) / other.devices)), change

    sizes = [1 << power for power in range(devices.bit_length())]
    candidates = [Layout(t, s, k) for t in sizes for s in sizes for k in sizes if t * s * k <= devices]
    return sorted((other for other in candidates if other != layout and fits(other)), key=distance)[:most]
