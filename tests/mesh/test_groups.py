import jax
import numpy as np
import pytest

from medha_jax.mesh import axes_of, axes_of_pairs, build_mesh
from medha_jax.specs.layout import Layout


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(Layout(tp=2, spp=2, kvp=2))


PLACES = np.arange(8).reshape(2, 2, 2)  # spp, kvp, tp


@pytest.mark.parametrize(
    "groups, axes",
    [
        (PLACES.reshape(4, 2), ("tp",)),
        (PLACES.transpose(0, 2, 1).reshape(4, 2), ("kvp",)),
        (PLACES.transpose(1, 2, 0).reshape(4, 2), ("spp",)),
        (PLACES.reshape(2, 4), ("kvp", "tp")),
        (PLACES.transpose(1, 0, 2).reshape(2, 4), ("spp", "tp")),
        (PLACES.reshape(1, 8), ("spp", "kvp", "tp")),
        (PLACES.reshape(8, 1), ()),
        ([[0, 3], [1, 2], [4, 7], [5, 6]], None),
        ([[1, 0], [3, 2], [7, 6], [5, 4]], ("tp",)),
    ],
)
def test_groups(mesh, groups, axes):
    assert axes_of(np.asarray(groups).tolist(), mesh) == axes


@pytest.mark.parametrize(
    "pairs, axes",
    [
        ([(0, 4), (4, 0), (1, 5), (5, 1)], ("spp",)),
        ([(0, 1)], ("tp",)),
        ([(0, 3), (3, 0)], ("kvp", "tp")),
        ([(5, 5)], ()),
    ],
)
def test_pairs(mesh, pairs, axes):
    assert axes_of_pairs(pairs, mesh) == axes


def test_axes_of_one_device_are_not_named():
    assert len(jax.devices()) >= 4
    mesh = build_mesh(Layout(tp=1, spp=2, kvp=2))
    assert axes_of([[0, 1], [2, 3]], mesh) == ("kvp",)
    assert axes_of([[0, 1, 2, 3]], mesh) == ("spp", "kvp")
