from __future__ import annotations

from pathlib import Path

import jax
import pytest

from medha_jax.runtime.executables import Compiled, ExecutableTable, use_compilation_cache
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
