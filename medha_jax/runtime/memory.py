"""Memory that a configuration needs on each device, and whether it fits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from typing import Any

import jax

from medha_jax.runtime.programs import Programs
from medha_jax.specs.layout import Layout, LayoutError, nearest_layouts

MIB = 2**20


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device. `limit` is the usable memory, None if unknown.

    `pool_per_page` counts one KV page over all layers and heads of the device.
    """

    weights: int
    pool: int
    register: int
    slots: int
    pool_per_page: int
    pages: int
    page_size: int
    groups: int
    limit: int | None

    @property
    def total(self) -> int:
        """Bytes kept between ticks. Running programs need more."""
        return self.weights + self.pool + self.register + self.slots

    @property
    def longest_context(self) -> int | None:
        """Tokens of one request that would fit in all groups if the pool took all remaining memory."""
        if self.limit is None:
            return None
        left = max(0, self.limit - self.total + self.pool)
        return left // self.pool_per_page * self.page_size * self.groups

    def lines(self) -> list[str]:
        """The plan as text."""
        parts = {"weights": self.weights, "KV pool": self.pool, "register": self.register, "slots": self.slots}
        sizes = ", ".join(f"{name} {size / MIB:,.1f} MiB" for name, size in parts.items())
        limit = "unknown" if self.limit is None else f"{self.limit / MIB:,.0f} MiB"
        longest = "unknown" if self.longest_context is None else f"{self.longest_context:,} tokens"
        return [
            f"memory a device: {sizes}; {self.total / MIB:,.1f} MiB of {limit}",
            f"pool: {self.pages:,} pages of {self.page_size} tokens in each of {self.groups} groups; "
            f"longest context that would fit: {longest}",
        ]


def plan_memory(programs: Programs, limit: int | None) -> MemoryPlan:
    """Count the bytes that stay on a device. `limit` is its usable bytes, None if unknown."""
    state = programs.state_shapes
    pool = sum(_local(leaf) for leaf in jax.tree.leaves(state.pool))
    slots = sum(_local(leaf) for leaf in jax.tree.leaves((state.table, state.last_token, state.slots)))
    return MemoryPlan(
        weights=sum(_local(shape) for shape in programs.parameter_shapes.values()),
        pool=pool,
        register=_local(state.register),
        slots=slots,
        pool_per_page=pool // programs.sizes.pages,
        pages=programs.sizes.pages,
        page_size=programs.config.mesh.page_size,
        groups=programs.layout.kvp,
        limit=limit,
    )


def _local(shape: Any) -> int:
    size: int = prod(shape.sharding.shard_shape(shape.shape)) * shape.dtype.itemsize
    return size


def usable_bytes(device: jax.Device, sharing: int, fraction: float) -> int | None:
    """Usable bytes of a device: `fraction` of an accelerator's memory, or of the host's, divided by `sharing` CPUs."""
    if device.platform == "cpu":
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * fraction) // sharing
    stats = device.memory_stats() or {}
    return int(stats["bytes_limit"] * fraction) if "bytes_limit" in stats else None


def check_memory(plan: MemoryPlan, programs: Programs, devices: int) -> None:
    """Raise LayoutError if a plan does not fit. The message suggests layouts that need less memory per device."""
    if plan.limit is None or plan.total <= plan.limit:
        return
    layout, arch = programs.layout, programs.arch
    ratio = plan.total / plan.limit

    def fits(other: Layout) -> bool:
        # tp and spp divide the weights; kvp divides the pool as well
        return not other.misfits(arch) and other.devices / layout.devices >= ratio

    raise LayoutError(
        f"{layout} needs {plan.total / MIB:,.0f} MiB a device (weights {plan.weights / MIB:,.0f}, KV pool "
        f"{plan.pool / MIB:,.0f}); usable are {plan.limit / MIB:,.0f} MiB. Give fewer pool tokens, a shorter context, "
        f"or more devices{_suggest(nearest_layouts(layout, fits, devices))}"
    )


def _suggest(layouts: list[Layout]) -> str:
    return f": {' or '.join(map(str, layouts))}" if layouts else ""
