"""What this process may use of the machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import medha_jax
from medha_jax.machine import (
    ControlGroups,
    bind_threads,
    bound_cores,
    cores,
    cpu_kind,
    cpu_model,
    memory_bytes,
    vector_flags,
)

PACKAGE = Path(medha_jax.__file__).parent
INTEL = (
    "processor\t: 0\nmodel name\t: A\nflags\t\t: fpu sse4_2 avx2 avx aes avx512f\n\nprocessor\t: 1\nflags\t: amx_tile\n"
)
ARM = "processor\t: 0\nFeatures\t: fp asimd sve2 crc32\n"


class Tree:
    """A tree of control groups below a directory."""

    def __init__(self, root: Path) -> None:
        self.root, self.own = root, root / "own"
        self.groups = ControlGroups(root, self.own)

    def belongs(self, *lines: str) -> None:
        self.own.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")

    def says(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text + "\n", encoding="ascii")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.setattr(os, "sched_getaffinity", lambda number: set(range(8)))
    return Tree(tmp_path)


def test_without_groups_it_is_the_whole_machine(tree: Tree) -> None:
    assert tree.groups.memory is None and tree.groups.cores is None
    assert memory_bytes(tree.groups) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert cores(tree.groups) == bound_cores() == 8


def test_limits_of_memory(tree: Tree) -> None:
    whole = memory_bytes(tree.groups)
    tree.belongs("0::/a/b")
    tree.says("a/b/memory.max", "max")
    assert memory_bytes(tree.groups) == whole
    tree.says("a/memory.max", str(2**28))
    assert memory_bytes(tree.groups) == 2**28, "the limit of the group above"
    tree.says("a/b/memory.max", str(2**27))
    assert memory_bytes(tree.groups) == 2**27
    tree.belongs("5:cpu:/x", "4:memory:/c")
    assert memory_bytes(tree.groups) == whole
    tree.says("memory/c/memory.limit_in_bytes", str(2**26))
    assert memory_bytes(tree.groups) == 2**26, "version 1"
    tree.says("memory/c/memory.limit_in_bytes", str(2**63 - 4096))
    assert memory_bytes(tree.groups) == whole, "version 1 says so for no limit"
    tree.belongs("0::/../../known/to/the/host", "7:name=systemd:/x")
    tree.says("memory.max", str(2**25))
    assert memory_bytes(tree.groups) == 2**25, "a container's own group is mounted at the root"


def test_quotas_of_cpu_time(tree: Tree) -> None:
    tree.belongs("0::/a/b")
    tree.says("a/b/cpu.max", "max 100000")
    assert cores(tree.groups) == 8
    for quota, found in (("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("3200000 100000", 8)):
        tree.says("a/cpu.max", quota)
        assert cores(tree.groups) == found, quota
    tree.says("a/cpu.max", "max 100000")
    for name, mount in (("cpu", "cpu"), ("cpu,cpuacct", "cpu,cpuacct"), ("cpuacct,cpu", "cpu")):
        tree.belongs("11:cpuset:/", f"4:{name}:/c", "0::/")
        assert cores(tree.groups) == 8
        tree.says(f"{mount}/c/cpu.cfs_period_us", "50000")
        tree.says(f"{mount}/c/cpu.cfs_quota_us", "150000")
        assert cores(tree.groups) == 3, name
        tree.says(f"{mount}/c/cpu.cfs_quota_us", "-1")
    for text in ("", "nonsense", "1", "1 0", "1 2 3"):
        tree.says("cpu.max", text)
        assert cores(tree.groups) == 8, text


def test_affinity_counts_where_it_is_less(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda number: {3})
    assert cores(tree.groups) == bound_cores() == 1
    tree.says("cpu.max", "400000 100000")
    assert cores(tree.groups) == 1


@pytest.mark.parametrize("lines", [("",), ("nonsense",), ("0:", "::", ":::"), ("4:memory",)])
def test_files_of_no_known_form_are_no_limit(tree: Tree, lines: tuple[str, ...]) -> None:
    tree.belongs(*lines)
    assert tree.groups.memory is None and tree.groups.cores is None


def test_kinds_of_cpu(tmp_path: Path) -> None:
    def info(text: str) -> Path:
        (tmp_path / "cpuinfo").write_text(text, encoding="ascii")
        return tmp_path / "cpuinfo"

    assert cpu_model(info(INTEL)) == "A" and cpu_model() and cpu_model(tmp_path / "none")
    assert vector_flags(info(INTEL)) == ("avx", "avx2", "avx512f", "sse4_2")
    assert vector_flags(info(ARM)) == ("asimd", "sve2")
    assert vector_flags(info("")) == vector_flags(tmp_path / "none") == ()
    kinds = {cpu_kind(info(text)) for text in (INTEL, INTEL.replace(" A", " B"), INTEL.replace("avx512f", ""), ARM, "")}
    assert len(kinds) == 5 and all(re.fullmatch(r"cpu-[0-9a-f]{12}", kind) for kind in kinds)
    assert cpu_kind(info(INTEL)) == cpu_kind(info(INTEL.replace("fpu", "fpu aes ibrs"))), "of no vectors"


def test_it_is_asked_in_one_place() -> None:
    asks = re.compile(r"cpu_count|sched_getaffinity|SC_PHYS_PAGES|/proc/cpuinfo|/sys/fs/cgroup")
    found = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if asks.search(file.read_text("utf-8"))}
    assert found == {"machine.py"}


def test_the_environment_is_read_in_one_place() -> None:
    asks = re.compile(r"\benviron\b|getenv|Path\.home|expanduser")
    found = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if asks.search(file.read_text("utf-8"))}
    assert found == {"config/environment.py"}


def test_only_as_many_threads_as_cores_are_bound(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    for number in range(len(before) + 1):  # of no real threads: nothing may be asked of them
        (tmp_path / str(number + 10**8)).mkdir()
        (tmp_path / str(number + 10**8) / "comm").write_text("worker\n")
    assert bind_threads("worker", tmp_path) == bind_threads("other", tmp_path) == 0
    assert bind_threads("worker", tmp_path / "missing") == 0
    (tmp_path / str(10**8) / "comm").unlink()
    assert bind_threads("worker", tmp_path) == 0  # they are as many as cores, and have ended
    assert os.sched_getaffinity(0) == before
