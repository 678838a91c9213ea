from __future__ import annotations

import pytest

from medha_jax.mesh import Layout, build_mesh


def test_devices_of_a_layout() -> None:
    assert Layout(tp=8, spp=2).devices == 16


@pytest.mark.parametrize("axis", ["tp", "spp", "kvp"])
def test_an_axis_without_devices_is_refused(axis: str) -> None:
    with pytest.raises(ValueError, match=f"{axis} is 0; it must be at least 1"):
        Layout(**{axis: 0})


def test_too_few_devices_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="tp=64,spp=64,kvp=1 needs 4096 devices; there are"):
        build_mesh(Layout(tp=64, spp=64))


def test_one_device_has_all_three_axes() -> None:
    assert dict(build_mesh(Layout()).shape) == {"spp": 1, "kvp": 1, "tp": 1}
