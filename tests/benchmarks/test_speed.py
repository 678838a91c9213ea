from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import AROUND_S, EVERY_S, Slowness, probed

FAST, SLOW = 1e-4, 2e-4


@pytest.fixture
def probes(tmp_path: Path) -> Path:
    """Of a core that is slow in the second of three seconds."""
    at = np.arange(0, 3, EVERY_S)
    path = tmp_path / "probes.txt"
    np.savetxt(path, np.column_stack([at, np.where((at >= 1) & (at < 2), SLOW, FAST)]))
    return path


def test_slowness_is_that_of_the_probes_around_a_moment(probes: Path) -> None:
    slowness = Slowness(probes)
    assert slowness.at(0.5) == pytest.approx(1)
    assert slowness.at(1.5) == pytest.approx(SLOW / FAST)
    assert slowness.at(1.0) == pytest.approx(1.5, abs=0.06)  # half of the probes around it
    assert slowness.at(1 - AROUND_S - 2 * EVERY_S, 0.01) == pytest.approx(1)


def test_a_long_tick_has_the_mean_of_its_probes(probes: Path) -> None:
    assert Slowness(probes).at(AROUND_S, 3 - 2 * AROUND_S) == pytest.approx(4 / 3, abs=0.02)


def test_where_nothing_was_probed_the_probe_before_says_it(probes: Path) -> None:
    assert Slowness(probes).at(99.0) == pytest.approx(1)
    assert Slowness(probes).at(-99.0) == pytest.approx(1)


def test_a_core_is_probed_for_as_long_as_the_block_lasts(tmp_path: Path) -> None:
    path = tmp_path / "probes.txt"
    with probed(0, path):
        deadline = time.monotonic() + 30
        while not (path.exists() and path.read_text().count("\n") > 5):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        now = time.perf_counter()
    written = path.read_text()
    at, took = np.loadtxt(path).T
    assert abs(at[-1] - now) < 5  # the clock of the ticks
    assert (np.diff(at) >= EVERY_S).all()
    assert (took > 0).all()
    time.sleep(5 * EVERY_S)
    assert path.read_text() == written
