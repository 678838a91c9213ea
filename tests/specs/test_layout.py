from __future__ import annotations

import pytest

from medha_jax.config import MeshConfig
from medha_jax.specs.layout import Layout, LayoutError, check_layout
from medha_jax.specs.model import Architecture
from tests.small import CONFIG

ARCH = Architecture.from_config({**CONFIG, "num_hidden_layers": 3, "vocab_size": 251})


def test_devices_of_a_layout() -> None:
    assert Layout(tp=8, spp=2).devices == 16
    assert Layout.of(MeshConfig(tp=8, kvp=2)) == Layout(tp=8, kvp=2)


@pytest.mark.parametrize("axis", ["tp", "spp", "kvp"])
def test_an_axis_without_devices_is_refused(axis: str) -> None:
    with pytest.raises(ValueError, match=f"{axis} is 0; it must be at least 1"):
        Layout(**{axis: 0})


def test_what_does_not_divide_is_refused_with_what_does() -> None:
    with pytest.raises(LayoutError) as caught:
        check_layout(ARCH, Layout(tp=8, spp=4))
    message = str(caught.value)
    assert "heads 4 is not divisible by tp=8" in message
    assert "spp=4 is more than 3 layers" in message
    assert "What fits: " in message
    suggested = message.split("What fits: ")[1].split(" or ")
    assert len(suggested) == 3
    for text in suggested:
        axes = dict(part.split("=") for part in text.split(","))
        check_layout(ARCH, Layout(**{name: int(size) for name, size in axes.items()}))
