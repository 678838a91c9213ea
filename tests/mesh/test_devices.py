from __future__ import annotations

import os

import pytest

from medha_jax.mesh import build_mesh, devices, request_cpu_devices
from medha_jax.specs.layout import Layout


def test_too_few_devices_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="tp=64,spp=64,kvp=1 needs 4096 devices; there are"):
        build_mesh(Layout(tp=64, spp=64))


def test_one_device_has_all_three_axes() -> None:
    assert dict(build_mesh(Layout()).shape) == {"spp": 1, "kvp": 1, "tp": 1}


@pytest.mark.parametrize(
    ("bound", "cores", "stated", "threads"), [(8, 8, None, None), (8, 2, None, "2"), (8, 2, "4", "4")]
)
def test_a_quota_bounds_the_threads_of_xla(
    monkeypatch: pytest.MonkeyPatch, bound: int, cores: int, stated: str | None, threads: str | None
) -> None:
    monkeypatch.setenv("NPROC", "")  # what it was comes back afterwards
    monkeypatch.delenv("NPROC")
    if stated is not None:
        monkeypatch.setenv("NPROC", stated)
    monkeypatch.setattr(devices, "bound_cores", lambda: bound)
    monkeypatch.setattr(devices, "cores", lambda: cores)
    request_cpu_devices(len(build_mesh(Layout()).devices.flat))
    assert os.environ.get("NPROC") == threads
