"""What else ran on this machine while something was measured, from `/proc`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
BUSY = (
    0.1  # cores that others may use; what the kernel does for a measurement counts as others, and takes a few percent
)


@dataclass(frozen=True)
class CpuUse:
    """CPU seconds since some moment in the past, at a time `at` in seconds of `time.monotonic`.

    Args:
        all: of all processes.
        own: of this process, its children and theirs.
        stolen: that the hypervisor gave to other machines.
    """

    at: float
    all: float
    own: float
    stolen: float


@dataclass(frozen=True)
class Others:
    """Cores that others used, as means over some seconds: other processes here, and other machines."""

    processes: float
    machines: float

    @property
    def warning(self) -> str | None:
        """What is wrong with a measurement of these seconds; None if nothing is."""
        parts = [
            f"{who} used {cores:.2f} cores"
            for who, cores in (("other processes", self.processes), ("other machines", self.machines))
            if cores > BUSY
        ]
        return " and ".join(parts) or None


def between(before: CpuUse, after: CpuUse) -> Others:
    """What others used between two looks."""
    seconds = after.at - before.at
    mine = after.own - before.own
    return Others(max(0.0, after.all - before.all - mine) / seconds, (after.stolen - before.stolen) / seconds)


def look() -> CpuUse | None:
    """The CPU seconds until now; None where the system does not say them."""
    try:
        everything, stolen = cpu_line((PROC / "stat").read_text())
    except (OSError, ValueError):
        return None
    processes = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                processes[int(folder.name)] = process_line((folder / "stat").read_text())
            except OSError:
                continue  # it has ended
    return CpuUse(time.monotonic(), everything, of_tree(processes, os.getpid()), stolen)


def others_for(seconds: float) -> Others | None:
    """What others use during the next seconds; None where the system does not say it."""
    before = look()
    time.sleep(seconds)
    after = look()
    return None if before is None or after is None else between(before, after)


def cpu_line(text: str) -> tuple[float, float]:
    """CPU seconds of all processes, and stolen ones, from `/proc/stat`.

    Raises:
        ValueError: it has no line of all cores.
    """
    name, *fields = text.split("\n", 1)[0].split()
    if name != "cpu" or len(fields) < 8:
        raise ValueError(f"not a line of CPU times: {text[:80]!r}")
    user, nice, system, stolen = (int(fields[place]) for place in (0, 1, 2, 7))
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system) / tick, stolen / tick


def process_line(text: str) -> tuple[int, float]:
    """Parent, and CPU seconds with those of ended children, from `/proc/PID/stat`."""
    fields = text.rsplit(")", 1)[1].split()  # a name may hold spaces and brackets
    return int(fields[1]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def of_tree(processes: Mapping[int, tuple[int, float]], root: int) -> float:
    """CPU seconds of a process and all below it, from the parent and the seconds of each process."""
    inside = {root}
    while more := {pid for pid, (parent, _) in processes.items() if parent in inside} - inside:
        inside |= more
    return sum(seconds for pid, (_, seconds) in processes.items() if pid in inside)
