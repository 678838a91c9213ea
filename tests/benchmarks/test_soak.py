"""A soak of seconds on a simulated mesh; hours are run by hand."""

import asyncio
import math
import os
import re
import signal
import threading

import pytest

from benchmarks.mixed_load import WEIGHTS, MixedLoad
from benchmarks.soak import Sample, faults, kinds_held, slope, watched
from medha_jax.client import Client, LoadInfo, PagePool
from medha_jax.server.settings import ServerSettings
from tests.server.embedded import running
from tests.server.processes import SIMULATED, ServerProcess, idle, wait_until

CONTEXT = 2048


def test_all_kinds_of_clients_leave_nothing_behind():
    with ServerProcess(*SIMULATED, "--tick-ms", 1, "--context", CONTEXT, "--slots", 16) as server:
        load = MixedLoad(server.address, CONTEXT, seed=1)
        asyncio.run(load.run(tasks=8, requests=100, seconds=60.0))
        bounds = dict(tasks=8, requests=600, seconds=60.0, every=0.5, reload=False)
        samples, before, after = asyncio.run(watched(load, server.address, server.process.pid, **bounds))
        assert samples and not faults(before, after, load.failed), server.errors
        assert set(load.done) == {*WEIGHTS, "kill"}
        assert "Traceback" not in server.errors


def test_a_load_ends_early_at_sigterm():
    with ServerProcess(*SIMULATED, "--tick-ms", 1, "--context", CONTEXT) as server:
        load = MixedLoad(server.address, CONTEXT, seed=1, kinds=("short",))
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        bounds = dict(tasks=2, requests=math.inf, seconds=600.0, every=0.2, reload=False)
        _, before, after = asyncio.run(watched(load, server.address, server.process.pid, **bounds))
    assert load.done.total() and not faults(before, after, load.failed)


def test_clients_that_leave_or_are_killed_leave_no_task():
    """The form of `--kinds leave kill`, in this process, whose tasks, descriptors and threads can be counted."""

    def held():
        return len(asyncio.all_tasks(loader.loop)), len(os.listdir("/proc/self/fd")), threading.active_count()

    with running(ServerSettings(port=0, access_log="off"), CONTEXT) as (lines, loader):
        address = lines[-1].split()[-1]
        load = MixedLoad(address, CONTEXT, seed=3, kinds=("leave", "kill"))
        asyncio.run(load.run(tasks=8, requests=60, seconds=60.0))
        with Client(address) as client:
            wait_until(lambda: idle(client), 30)
            before = held()
            asyncio.run(load.run(tasks=8, requests=500, seconds=60.0))
            wait_until(lambda: idle(client), 30)
            wait_until(lambda: all(now <= was for now, was in zip(held(), before, strict=True)), 30)
    assert load.done.total() >= 500 and load.done["kill"] and not load.failed


def test_what_came_meanwhile_has_a_kind(tmp_path):
    (path := tmp_path / "kept").write_text("")
    before, ended = kinds_held(os.getpid()), threading.Event()
    with path.open() as kept:
        thread = threading.Thread(target=ended.wait)
        thread.start()
        came = kinds_held(os.getpid()) - before
        ended.set()
        thread.join()
    assert came[f"fd {re.sub('[0-9]+', '', kept.name)}"] == 1
    assert sum(count for kind, count in came.items() if kind.startswith("task ")) == 1


def test_good_requests_that_fail_are_told():
    with ServerProcess(*SIMULATED, "--tick-ms", 1, "--context", CONTEXT, "--max-output", 1) as server:
        load = MixedLoad(server.address, CONTEXT, seed=1, kinds=("short",))
        asyncio.run(load.run(tasks=2, requests=5, seconds=60.0))
    assert load.failed and load.failed[0].startswith("short: ")


def sample(descriptors=10, threads=20, running=0, free=100, used_slots=0):
    load = LoadInfo(running, 0, 0, 8, (PagePool(100, free),), True, used_slots)
    return Sample(0.0, 100.0, descriptors, threads, load)


@pytest.mark.parametrize(
    "left", [{"descriptors": 19}, {"threads": 40}, {"running": 1}, {"free": 99}, {"used_slots": 1}]
)
def test_what_is_left_behind_is_told(left):
    assert len(faults(sample(), sample(**left), ())) == 1
    assert not faults(sample(), sample(), ())


def test_the_slope_is_that_of_a_line_and_its_error_that_of_the_noise():
    growth, error = slope([0.0, 1.0, 2.0, 3.0], [5.0, 7.0, 9.0, 11.0])
    assert growth == pytest.approx(2.0) and error == pytest.approx(0.0, abs=1e-9)
    growth, error = slope([0.0, 1.0, 2.0, 3.0], [1.0, -1.0, -1.0, 1.0])
    assert growth == pytest.approx(0.0) and error == pytest.approx(math.sqrt(4 / 2 / 5))
    assert math.isnan(slope([0.0, 1.0], [1.0, 2.0])[0])
