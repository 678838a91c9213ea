"""The GPUs that are described, as data."""

import pytest

from medha_jax.inspection import GpuTargetError, gpu_names, load_gpu
from medha_jax.inspection.gpu_targets import parse_gpu
from medha_jax.simulate.hardware import load_hardware

HARDWARE = {"a100": "a100-80", "h100": "h100", "h200": "h200"}


def test_every_gpu_is_the_simulators():
    assert gpu_names() == tuple(HARDWARE)
    for name, other in HARDWARE.items():
        gpu, hardware = load_gpu(name), load_hardware(other)
        assert gpu.target.processors == hardware.cores
        # the data sheet's bytes, of which some are the driver's
        assert 0.95 * hardware.memory < gpu.memory < 1.08 * hardware.memory
        assert name.upper() in gpu.target.name
    assert [load_gpu(name).target.capability for name in HARDWARE] == [80, 90, 90]


def test_a_gpu_that_is_not_described():
    with pytest.raises(GpuTargetError, match="no GPU named 'h300'; there are a100, h100, h200"):
        load_gpu("h300")


@pytest.mark.parametrize("field", ["core_count", "driver_version", "device_description_str", "cuda_compute_capability"])
def test_a_description_that_lacks_a_field(field):
    text = "\n".join(
        line for line in load_gpu("h200").text.splitlines() if field not in line.split(":")[0].split("{")[0]
    )
    with pytest.raises(GpuTargetError, match=f"lacks {field}"):
        parse_gpu("h200", text)
