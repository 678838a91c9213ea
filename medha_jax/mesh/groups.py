"""Which axes of a mesh groups of devices belong to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from jax.sharding import Mesh

Groups = Sequence[Sequence[int]]


def axes_of(groups: Groups, mesh: Mesh) -> tuple[str, ...] | None:
    """Name the axes along which devices are grouped.

    Args:
        groups: places of devices in `mesh.devices.flat`, each device in one group.
        mesh: whose axes are meant; those of one device are never named.

    Returns:
        The axes in the mesh's order, none if every device is alone, None if no axes make these groups.
    """
    wanted = {frozenset(group) for group in groups}
    return next((axes for axes in _combinations(mesh) if _along(axes, mesh) == wanted), None)


def axes_of_pairs(pairs: Groups, mesh: Mesh) -> tuple[str, ...] | None:
    """Name the fewest axes along which (source, target) pairs of devices send; None if there are no such axes."""
    for axes in _combinations(mesh):
        group_of = {device: group for group in _along(axes, mesh) for device in group}
        if all(group_of.get(source, source) == group_of.get(target, target) for source, target in pairs):
            return axes
    return None


def _combinations(mesh: Mesh) -> Iterable[tuple[str, ...]]:
    real = [name for name in mesh.axis_names if mesh.shape[name] > 1]
    return itertools.chain.from_iterable(itertools.combinations(real, n) for n in range(len(real) + 1))


def _along(axes: tuple[str, ...], mesh: Mesh) -> set[frozenset[int]]:
    """The groups of devices that differ in these axes only."""
    places = np.arange(mesh.devices.size).reshape(mesh.devices.shape)
    last = [mesh.axis_names.index(axis) for axis in axes]
    others = [axis for axis in range(places.ndim) if axis not in last]
    size = int(np.prod([mesh.shape[axis] for axis in axes], dtype=int))
    return {frozenset(group) for group in places.transpose(others + last).reshape(-1, size).tolist()}
