from __future__ import annotations

import pytest

from medha_jax.mesh import build_mesh
from medha_jax.specs.layout import Layout


def test_too_few_devices_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="tp=64,spp=64,kvp=1 needs 4096 devices; there are"):
        build_mesh(Layout(tp=64, spp=64))


def test_one_device_has_all_three_axes() -> None:
    assert dict(build_mesh(Layout()).shape) == {"spp": 1, "kvp": 1, "tp": 1}
