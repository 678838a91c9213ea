"""The first shapes compile at once, the others one after another in a thread, whole grids at a time."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import pytest

from medha_jax.config import Buckets
from medha_jax.runtime import shape_compiler
from medha_jax.runtime.shape_compiler import ShapeCompiler
from medha_jax.runtime.shapes import Shape, SliceShape, rows_of_shape
from medha_jax.specs.shape_grid import ShapeGrid

GRID = ShapeGrid(Buckets(decode=(1, 4), prefill=(8,), slices=(16,)))  # it grows in three steps
NAMES = ["4+0", "4+8", "1+0", "1+8", "slice 0+16"]


@dataclass
class FewPrograms:
    """Programs that only add; `before` is called with each shape that is lowered."""

    before: Callable[[Shape], object] = lambda shape: None
    compiler_options: dict[str, Any] = field(default_factory=dict)
    lowered: list[str] = field(default_factory=list)

    def shapes(self, grid: ShapeGrid) -> tuple[Shape, ...]:
        return *grid.buckets, *map(SliceShape, grid.slice_buckets)

    def lower(self, shape: Shape) -> jax.stages.Lowered:
        self.lowered.append(str(shape))
        self.before(shape)
        rows = rows_of_shape(shape).rows
        return jax.jit(lambda x: x.sum()).lower(jax.ShapeDtypeStruct((rows,), "float32"))


def run(programs: FewPrograms, lines: list[str]) -> tuple[ShapeCompiler, list[str]]:
    """Compile the first shapes; returns also their names."""
    compiler = ShapeCompiler(programs, GRID.growth, lines.append)
    return compiler, [*map(str, compiler.compile_first().shapes)]


def ended(compiler: ShapeCompiler) -> None:
    compiler._thread.join(60)
    assert not compiler._thread.is_alive()


def test_whole_grids_come_in_order() -> None:
    lines: list[str] = []
    compiler, first = run(FewPrograms(), lines)
    assert first == NAMES[:2] and compiler.take() is None
    compiler.start()
    ended(compiler)
    ticks, everything = compiler.take(), compiler.take()
    assert ticks is not None and everything is not None and compiler.take() is None
    assert (ticks.grid, everything.grid) == GRID.growth[1:]
    assert [*map(str, ticks.programs)] == NAMES[2:4] and [*map(str, everything.programs)] == NAMES[4:]
    assert lines[0] == f"compiling 5 shapes (decodes+prompt tokens): {', '.join(NAMES)}"
    assert [line.split(" in ")[0] for line in lines[3:-1]] == [f"compiled {n + 1}/5: {NAMES[n]}" for n in (2, 3, 4)]
    assert lines[-1] == "all 5 shapes are compiled"


@pytest.mark.parametrize("cores", [1, 2])
def test_no_more_shapes_compile_at_once_than_there_are_cores(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr(shape_compiler, "cores", lambda: cores)
    at_once, most, lock = 0, 0, threading.Lock()

    def before(shape: Shape) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1

    assert len(ShapeCompiler(FewPrograms(before), (GRID,), lambda line: None).compile_first().shapes) == 5
    assert most == cores


def test_where_all_is_compiled_at_once_there_is_no_thread() -> None:
    lines: list[str] = []
    compiler = ShapeCompiler(FewPrograms(), (GRID,), lines.append)
    assert len(compiler.compile_first().shapes) == 5
    compiler.start()
    assert not compiler._thread.is_alive() and compiler.take() is None
    assert len(lines) == 6


@pytest.mark.parametrize(("failing", "grids"), [("1+8", 0), ("slice 0+16", 1)])
def test_a_shape_that_fails_is_told_and_no_further_grid_comes(
    failing: str, grids: int, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(shape: Shape) -> None:
        if str(shape) == failing:
            raise MemoryError("no room")

    lines: list[str] = []
    compiler, _ = run(FewPrograms(fail), lines)
    compiler.start()
    ended(compiler)
    assert lines[-1] == f"{failing} could not be compiled: the server goes on with the shapes that it has"
    assert [record.message for record in caplog.records] == [f"compiling {failing}: no room"]
    assert [compiler.take() is not None for _ in range(2)] == [grids > 0, False]


def test_stopping_waits_for_nobody() -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def wait(shape: Shape) -> None:
        if str(shape) == "1+0":
            begun.set()
            assert goes_on.wait(60)

    lines: list[str] = []
    programs = FewPrograms(wait)
    compiler, _ = run(programs, lines)
    compiler.start()
    assert begun.wait(60)
    before = time.monotonic()
    compiler.stop()
    assert time.monotonic() - before < 1
    goes_on.set()
    ended(compiler)
    assert programs.lowered[2:] == ["1+0"] and compiler.take() is None and "all" not in lines[-1]


def test_the_interpreter_waits_for_the_shape_at_hand_even_if_a_daemon_thread_began_it() -> None:
    """A server loads in such a thread, and a process that ends while XLA compiles is aborted."""
    made: list[ShapeCompiler] = []
    loading = threading.Thread(target=lambda: made.append(run(FewPrograms(), [])[0]), daemon=True)
    loading.start()
    loading.join()
    assert not made[0]._thread.daemon


def test_what_compiling_leaves_is_looked_through_by_no_collection() -> None:
    compiler, _ = run(FewPrograms(), [])
    mark = {"one": []}
    assert any(one is mark for one in gc.get_objects())
    compiler.start()
    ended(compiler)
    assert not any(one is mark for one in gc.get_objects())
