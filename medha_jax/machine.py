"""The machine as far as this process may use it: its memory, its cores, its kind of CPU. No JAX.

In a container, control groups allow less than the machine has.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
THREADS = Path("/proc/self/task")
# beginnings of the flags that say which instructions compiled programs may use
VECTORS = ("sse", "ssse", "avx", "fma", "f16c", "bmi", "amx", "asimd", "sve", "sme")


@dataclass(frozen=True)
class ControlGroups:
    """The limits of this process's control groups and of all groups above them, of version 1 and 2.

    `root` is where the groups are mounted, `own` the file that names the process's groups.
    """

    root: Path = Path("/sys/fs/cgroup")
    own: Path = Path("/proc/self/cgroup")

    @property
    def memory(self) -> int | None:
        """The least limit in bytes; None without one."""
        files = [group / "memory.max" for group in self._groups("")]
        files += [group / "memory.limit_in_bytes" for group in self._groups("memory")]
        limits = [int(text) for file in files if (text := _text(file)).isdecimal()]
        return min(limits, default=None)

    @property
    def cores(self) -> float | None:
        """The least quota in CPU seconds a second; None without one."""
        quotas = [_text(group / "cpu.max").split() for group in self._groups("")]
        quotas += [
            [_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")] for group in self._groups("cpu")
        ]
        found = [
            int(quota[0]) / int(quota[1])
            for quota in quotas
            if len(quota) == 2 and all(part.isdecimal() and int(part) for part in quota)
        ]
        return min(found, default=None)

    def _groups(self, controller: str) -> Iterator[Path]:
        """Folders of the process's group of a controller of version 1, or of version 2, up to the root."""
        for line in _text(self.own).splitlines():
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if controller not in controllers.split(","):
                continue
            for base in self._mounts(controller, controllers):
                group = base / path.lstrip("/")
                yield from (at for at in (group, *group.parents) if at.is_relative_to(base))
        # a container's own group may be mounted at the root, under a path that only its host knows
        yield from self._mounts(controller, controller)

    def _mounts(self, controller: str, together: str) -> list[Path]:
        """Where a controller is mounted: alone, or `together` with others."""
        return [self.root / name for name in dict.fromkeys((controller, together))]


HERE = ControlGroups()


def memory_bytes(groups: ControlGroups = HERE) -> int:
    """Memory of this machine, or the limit of this process's control groups if that is less."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(whole, whole if groups.memory is None else groups.memory)


def cores(groups: ControlGroups = HERE) -> int:
    """Cores that this process may use: by its affinity, and by its quota of CPU time, rounded up."""
    allowed, quota = bound_cores(), groups.cores
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def bound_cores() -> int:
    """Cores that this process may run on, whatever its quota."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bind_threads(name: str, threads: Path = THREADS) -> int:
    """Bind this process's threads of a name to one core each, if there are as many as cores; returns how many.

    After a pause Linux may wake several on one core, and takes tens of milliseconds until it moves them apart.
    With fewer threads than cores nothing is bound: other processes would choose the same cores.
    """
    if not hasattr(os, "sched_setaffinity") or not threads.is_dir():
        return 0
    allowed = sorted(os.sched_getaffinity(0))
    found = sorted(int(thread.name) for thread in threads.iterdir() if _text(thread / "comm") == name)
    if len(found) != len(allowed):
        return 0
    bound = 0
    for thread, core in zip(found, allowed, strict=True):
        with suppress(OSError):  # a sandbox may forbid it; the thread then runs where it will
            os.sched_setaffinity(thread, {core})
            bound += 1
    return bound


def cpu_model(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name."""
    return _of_first_core(cpuinfo, "model name") or platform.processor() or platform.machine()


def vector_flags(cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """The processor's flags of vector instructions, sorted."""
    flags = _of_first_core(cpuinfo, "flags") or _of_first_core(cpuinfo, "Features")
    return tuple(sorted(flag for flag in flags.split() if flag.startswith(VECTORS)))


def cpu_kind(cpuinfo: Path = CPUINFO) -> str:
    """A name for all processors that run the same compiled programs equally fast: a word for a file's name."""
    known = (platform.machine(), cpu_model(cpuinfo), *vector_flags(cpuinfo))
    return f"cpu-{hashlib.sha256(chr(10).join(known).encode()).hexdigest()[:12]}"


def _of_first_core(cpuinfo: Path, name: str) -> str:
    for line in _text(cpuinfo).splitlines():
        found, _, value = line.partition(":")
        if found.strip() == name:
            return value.strip()
    return ""


def _text(file: Path) -> str:
    """What a file says; nothing if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
