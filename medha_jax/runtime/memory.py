"""Memory that a configuration needs on each device, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import jax

from medha_jax.machine import memory_bytes
from medha_jax.runtime.programs import Programs
from medha_jax.specs.layout import Layout, LayoutError, nearest_layouts

MIB, GIB = 2**20, 2**30
CPU_SHARE = 0.25  # of the memory that is left, for the pool on CPUs: other programs use the host's memory, too


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device. `limit` is the usable memory, None if unknown.

    `pool_per_page` counts one KV page over all layers and heads of the device. `hidden` are those that two programs
    leave where prompts are scored.
    """

    weights: int
    pool: int
    register: int
    held: int
    hidden: int
    slots: int
    pool_per_page: int
    pages: int
    page_size: int
    groups: int
    limit: int | None

    @property
    def total(self) -> int:
        """Bytes kept between ticks. Running programs need more."""
        return self.weights + self.pool + self.register + self.held + self.hidden + self.slots

    @property
    def longest_context(self) -> int | None:
        """Tokens of one request that would fit in all groups if the pool took all remaining memory."""
        if self.limit is None:
            return None
        return self.room(self.limit) // self.pool_per_page * self.page_size * self.groups

    def room(self, limit: int) -> int:
        """Bytes that all but the pool leave of `limit` bytes."""
        return max(0, limit - self.total + self.pool)

    def lines(self) -> list[str]:
        """The plan as text."""
        parts = {
            "weights": self.weights,
            "KV pool": self.pool,
            "register": self.register,
            "held rows": self.held,
            "slots": self.slots,
        }
        if self.hidden:
            parts["hidden states"] = self.hidden
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
        held=_local(state.held),
        hidden=0 if programs.kept_rows is None else 2 * _local(programs.hidden_shape),
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


def default_pool_tokens(plan: MemoryPlan, slots: int, on_cpu: bool) -> int:
    """KV tokens of each group's pool where none are stated: what is left, but no more than `slots` requests can use.

    On CPUs a part of what is left (`CPU_SHARE`). At least a page.

    Args:
        plan: with a pool for one request of the whole context, which is the answer if the limit is not known.
    """
    if plan.limit is None:
        return plan.pages * plan.page_size
    room = int(plan.room(plan.limit) * (CPU_SHARE if on_cpu else 1))
    return max(1, min(slots * plan.pages, room // plan.pool_per_page)) * plan.page_size


def host_tier_bytes(gib: float) -> int:
    """Bytes of a host tier of `gib` GiB.

    Raises:
        LayoutError: the host has less memory.
    """
    if gib * GIB > memory_bytes():
        raise LayoutError(f"{gib:g} GiB of host memory for KV; there are {memory_bytes() / GIB:.1f}")
    return int(gib * GIB)


def usable_bytes(device: jax.Device, sharing: int, fraction: float, host_tier: int = 0) -> int | None:
    """Usable bytes of a device: `fraction` of what JAX takes of an accelerator's memory.

    A CPU has its part of the host's, which `sharing` CPUs divide; `host_tier` bytes of it are for the host tier.
    """
    if device.platform == "cpu":
        return max(0, int(memory_bytes() * fraction) - host_tier) // sharing
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
