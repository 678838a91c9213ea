"""Probe a core's read speed over time: `python -m benchmarks.speed --core 0 --out FILE`, until SIGTERM.

A virtual core shares caches, and often the real core, with other machines. Then fetching takes up to twice as long, for
tenths of a second or for minutes, and no counter of the machine shows it. The probe reads a megabyte, the size of the
core's own cache, a hundred times per second and records the CPU time of each read. CPU time leaves out the time in
which other processes of this machine have the core. The probe uses about 2 % of the core.

A loop in Python is a worse probe: its own speed differs by up to 1.7 times between processes, and it hardly changes
when ticks take 1.4 times as long.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

EVERY_S = 0.01
READ = 2**18  # float32: 1 MB, about 0.1 ms
AROUND_S = 0.05  # probes within this time are averaged: a single one is off by 6 to 9 %


class Slowness:
    """Slowdown of fetching over time, from the probes of a core.

    Args:
        path: file of this program. The fifth percentile of its probes counts as 1.
    """

    def __init__(self, path: Path) -> None:
        self._at, took = np.loadtxt(path, ndmin=2).T
        self._sums = np.concatenate([[0.0], np.cumsum(took / np.percentile(took, 5))])

    def at(self, began: float, seconds: float = 0.0) -> float:
        """Mean slowdown around a time, in seconds of `time.perf_counter`."""
        low, high = np.searchsorted(self._at, (began - AROUND_S, began + seconds + AROUND_S)).tolist()
        if low == high:  # between two probes: take the one before
            low = max(0, low - 1)
            high = low + 1
        return float(self._sums[high] - self._sums[low]) / (high - low)


@contextmanager
def probed(core: int, out: Path) -> Iterator[None]:
    """Within the block, a child process probes a core."""
    command = [sys.executable, "-m", "benchmarks.speed", f"--core={core}", f"--out={out}"]
    with subprocess.Popen(command) as prober:
        try:
            yield
        finally:
            prober.send_signal(signal.SIGTERM)


def main() -> None:
    """Probe until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    os.sched_setaffinity(0, {given.core})
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    read = np.ones(READ, np.float32)
    with given.out.open("w", encoding="utf-8", buffering=1) as file:
        while True:
            time.sleep(EVERY_S)
            at, before = time.perf_counter(), time.thread_time()
            read.sum()
            file.write(f"{at:.6f} {time.thread_time() - before:.9f}\n")


if __name__ == "__main__":
    main()
