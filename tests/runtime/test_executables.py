from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path

import jax
import pytest

from medha_jax.runtime import executables
from medha_jax.runtime.executables import Compiled, ExecutableTable, open_cache, use_compilation_cache
from medha_jax.specs.buckets import Bucket, Segment, UnknownShapeError

SHAPES = [Bucket(Segment(decode)) for decode in (1, 2, 4)]


def compile_all() -> tuple[ExecutableTable, dict[Bucket, Compiled]]:
    made: dict[Bucket, Compiled] = {}
    lower = {
        b: lambda b=b: jax.jit(lambda x: (x * 3.5).sum()).lower(jax.ShapeDtypeStruct((b.rows,), "float32"))
        for b in SHAPES
    }
    return ExecutableTable.compile(lower, 2, made.__setitem__), made


def test_only_what_was_compiled_can_run() -> None:
    table, made = compile_all()
    assert table.shapes == tuple(SHAPES) == tuple(sorted(made))
    assert float(table.compiled(SHAPES[1])(jax.numpy.ones(2))) == 7
    with pytest.raises(UnknownShapeError, match=r"shape 3\+0 was not compiled; compiled are 1\+0, 2\+0, 4\+0"):
        table.compiled(Bucket(Segment(3)))


def test_it_is_told_what_the_cache_had(tmp_path: Path) -> None:
    use_compilation_cache(tmp_path / "programs")
    assert not any(made.cached for made in compile_all()[1].values())
    jax.clear_caches()
    assert all(made.cached for made in compile_all()[1].values())


def test_a_new_cache_directory_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for name in ("one", "other"):
        jax.clear_caches()
        use_compilation_cache(tmp_path / name)
        assert not any(made.cached for made in compile_all()[1].values())
        assert list((tmp_path / name).iterdir())


def test_entries_without_content_are_replaced(tmp_path: Path) -> None:
    use_compilation_cache(tmp_path)
    compile_all()
    entries = list(tmp_path.glob("*-cache"))
    assert entries
    for entry in entries:
        entry.write_bytes(b"")
    for cached in (False, True):
        jax.clear_caches()
        use_compilation_cache(tmp_path)
        assert all(made.cached is cached for made in compile_all()[1].values())


def test_programs_are_kept_by_the_kind_of_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    for kind in ("cpu-a", "cpu-b"):
        monkeypatch.setattr(executables, "cpu_kind", lambda kind=kind: kind)
        jax.clear_caches()
        open_cache(tmp_path, True, lines.append)
        assert not any(made.cached for made in compile_all()[1].values())
        assert list((tmp_path / kind).glob("*-cache"))
    assert not lines


@pytest.mark.parametrize("kind", ["none", "file", "proc", "full"])
def test_without_a_place_for_a_cache_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "file").write_text("")
    where = {"none": None, "file": tmp_path / "file" / "below", "proc": Path("/proc/below"), "full": tmp_path}[kind]
    if kind == "full":

        def full(**given: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("tempfile.TemporaryFile", full)
    lines: list[str] = []
    open_cache(where, True, lines.append)
    (line,) = lines
    assert line.startswith("every start compiles all programs") and line.endswith("set MEDHA_JAX_CACHE")
    assert where is None or str(where) in line


def test_entries_that_are_refused_are_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    shown = warnings.showwarning
    use_compilation_cache(tmp_path)
    compile_all()
    entries = list(tmp_path.glob("*-cache"))
    assert len(entries) > 1
    for entry in entries:
        entry.write_bytes(b"no program")
    jax.clear_caches()
    use_compilation_cache(tmp_path)
    table, made = compile_all()
    assert not any(one.cached for one in made.values())
    assert float(table.compiled(SHAPES[1])(jax.numpy.ones(2))) == 7
    (line,) = (record.getMessage() for record in caplog.records if "compiled programs" in record.getMessage())
    assert "Error reading persistent compilation cache entry" in line and "\n" not in line
    assert not [one for one in recwarn if "compilation cache" in str(one.message)]
    assert warnings.showwarning is shown
