"""Every layout of a model on a number of devices, and why some are impossible."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from medha_jax.config import GROUP, STAGE, TENSOR, Buckets, MeshConfig
from medha_jax.simulate.device_sizes import DeviceSizes
from medha_jax.simulate.hardware import Hardware
from medha_jax.simulate.room import Room, room_of
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture

PAGE = 128
WIDTH = 120
SLICES = (512, 2048, 8192)
OWN = Buckets(decode=(1, 8, 32, 128), prefill=(64, 256, 512, 1024, 2048), slices=SLICES, chunks=16)
SHARED = Buckets(decode=(4,), prefill=(64, 512, 2048), slices=SLICES, chunks=2)


@dataclass(frozen=True)
class Candidate:
    """A layout, with `replicas` independent servers of it on all devices.

    `spread` is the number of groups that hold a longest request at its end.
    """

    mesh: MeshConfig
    replicas: int
    spread: int

    def __str__(self) -> str:
        return str(self.mesh)


@dataclass(frozen=True)
class Feasible:
    """A candidate that fits, its sizes on a device, and the memory left."""

    candidate: Candidate
    sizes: DeviceSizes
    room: Room


@dataclass(frozen=True)
class Refused:
    """A candidate that is impossible, and why."""

    candidate: Candidate
    reason: str


def candidates(devices: int, context: int, hardware: Hardware) -> Iterator[Candidate]:
    """All `(tp, spp, kvp, tokens per group)` whose number of devices divides `devices`.

    A group holds the context divided by the groups that hold a longest request, in whole pages.
    """
    for used in _divisors(devices):
        for tp in _divisors(used):
            for spp in _divisors(used // tp):
                kvp = used // tp // spp
                for spread in _divisors(kvp):
                    per_group = -(-context // (spread * PAGE)) * PAGE if kvp > 1 else None
                    mesh = MeshConfig(
                        tp=tp,
                        spp=spp,
                        kvp=kvp,
                        page_size=PAGE,
                        tokens_per_group=per_group,
                        buckets=OWN,
                        shared_buckets=SHARED if kvp > 1 else None,
                        hardware=hardware.name,
                    )
                    yield Candidate(mesh, devices // used, spread)


def look_at(
    candidate: Candidate, model: Architecture, hardware: Hardware, dtype: str, context: int, slots: int
) -> Feasible | Refused:
    """Check that a candidate divides the model and fits the memory; `context` is the tokens of a longest request."""
    mesh = candidate.mesh
    if found := Layout.of(mesh).misfits(model):
        return Refused(candidate, "; ".join(found))
    sizes = DeviceSizes(model, mesh, dtype)
    room = room_of(sizes, hardware, slots, context)
    return Refused(candidate, room.shortage) if room.shortage else Feasible(candidate, sizes, room)


def layout_yaml(mesh: MeshConfig, comment: str) -> str:
    """A layout as a file that `medha_jax.config.load_mesh` reads."""

    def sizes(buckets: Buckets) -> dict[str, object]:
        kinds = {name: list(getattr(buckets, name)) for name in ("decode", "prefill", "slices")}
        return {**kinds, "chunks": buckets.chunks}

    stated: dict[str, object] = {name: getattr(mesh, name) for name in (TENSOR, STAGE, GROUP, "page_size")}
    if mesh.tokens_per_group is not None:
        stated["tokens_per_group"] = mesh.tokens_per_group
    stated["buckets"] = sizes(mesh.buckets)
    if mesh.shared_buckets is not None:
        stated["shared_buckets"] = sizes(mesh.shared_buckets)
    stated["hardware"] = mesh.hardware
    body = yaml.safe_dump(stated, sort_keys=False, default_flow_style=None, width=WIDTH)
    return "".join(f"# {line}\n" for line in textwrap.wrap(comment, WIDTH - 2)) + body


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
