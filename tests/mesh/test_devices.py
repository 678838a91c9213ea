from __future__ import annotations

import os
import subprocess
import sys

import pytest

from medha_jax.machine import bound_cores, cores
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


BINDING = """
import os, sys
from contextlib import suppress
from pathlib import Path
import jax
from medha_jax.mesh import bind_cpu_threads, request_cpu_devices

request_cpu_devices(int(sys.argv[1]))
jax.block_until_ready(jax.numpy.ones((512, 512)) @ jax.numpy.ones((512, 512)))
print(bind_cpu_threads())
for thread in Path("/proc/self/task").iterdir():
    with suppress(OSError):  # others may end meanwhile
        if (thread / "comm").read_text().strip() == "tf_XLAEigen":
            print(*sorted(os.sched_getaffinity(int(thread.name))))
print(*sorted(os.sched_getaffinity(0)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux binds threads")
@pytest.mark.parametrize("count", [1, 2])
def test_each_thread_of_a_lone_device_has_a_core_of_its_own(count: int) -> None:
    run = subprocess.run([sys.executable, "-c", BINDING, str(count)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    bound, *threads, own = run.stdout.splitlines()
    allowed = [str(core) for core in sorted(os.sched_getaffinity(0))]
    assert own == " ".join(allowed)  # of the thread that asked
    if count == 1 and cores() == bound_cores():
        assert int(bound) == len(allowed) and sorted(threads) == sorted(allowed)
    else:  # devices, or containers with a quota, would take turns on the same cores
        assert bound == "0" and set(threads) == {own}
