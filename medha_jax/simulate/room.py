"""Whether a model and a longest request fit the memory of a layout, and how much is left."""

from __future__ import annotations

from dataclasses import dataclass

from medha_jax.simulate.device_sizes import DeviceSizes
from medha_jax.simulate.hardware import Hardware
from medha_jax.specs.sizes import Sizes

GIB = 2**30


@dataclass(frozen=True)
class Room:
    """Bytes of one device, and tokens of one group.

    Args:
        usable: bytes of the device that may be used.
        register: bytes of the stage register, and of the hidden states that rest between slices.
        slots: bytes of page tables and sampler state.
        token: bytes of one token's KV.
        pool_tokens: tokens of a group's pool if it takes all that is left, in whole pages.
        needed: tokens of a longest request on one group.
    """

    usable: int
    weights: int
    register: int
    slots: int
    token: int
    pool_tokens: int
    needed: int

    @property
    def head_room(self) -> int:
        """Bytes left beside one longest request; below 0 if it does not fit."""
        return self.usable - self.weights - self.register - self.slots - self.needed * self.token

    @property
    def shortage(self) -> str:
        """Why it does not fit, with the numbers; empty if it fits."""
        fixed = self.weights + self.register + self.slots
        if fixed > self.usable:
            return f"{fixed / GIB:,.1f} GiB of weights and state do not fit {self.usable / GIB:,.1f} GiB a device"
        if self.head_room < 0:
            return (
                f"{self.needed:,} tokens of KV a group need {self.needed * self.token / GIB:,.1f} GiB a device; "
                f"{(self.usable - fixed) / GIB:,.1f} are left"
            )
        return ""


def room_of(sizes: DeviceSizes, hardware: Hardware, slots: int, context: int) -> Room:
    """Count what a layout keeps, as `medha_jax.runtime.memory` does."""
    mesh = sizes.mesh
    usable = int(hardware.memory * mesh.memory_fraction)
    weights, register, state = (
        sizes.weight_bytes,
        sizes.register_bytes + sizes.held_bytes,
        sizes.slot_bytes(slots, context),
    )
    page = mesh.page_size
    left = max(0, usable - weights - register - state) // (page * sizes.kv_token_bytes)
    needed = Sizes.on(mesh, context).pages * page
    return Room(usable, weights, register, state, sizes.kv_token_bytes, left * page, needed)
