"""The compilation of a runtime's shapes: the first ones before it runs, the others beside it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

from medha_jax.collector import exempt_live_objects
from medha_jax.machine import cores
from medha_jax.runtime.executables import Builder, Compiled, ExecutableTable
from medha_jax.runtime.programs import Programs
from medha_jax.runtime.shapes import Shape
from medha_jax.specs.shape_grid import ShapeGrid

Report = Callable[[str], Any]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Growth:
    """A larger grid, and the programs that the grid before it lacks."""

    grid: ShapeGrid
    programs: Mapping[Shape, Compiled]


class ShapeCompiler:
    """Compiles the shapes of the first grid at once, and those of the others in a thread of its own.

    That thread compiles one shape after another, which leaves cores to the ticks. If a shape fails, the error is logged
    and no further grid comes.

    Args:
        programs: lower the shapes.
        grids: each has all shapes of the one before.
        report: called with each line of progress, from both threads.
    """

    def __init__(self, programs: Programs, grids: Sequence[ShapeGrid], report: Report) -> None:
        self._programs, self._report = programs, report
        self._steps: list[tuple[ShapeGrid, list[Shape]]] = []
        seen = set[Shape]()
        for grid in grids:
            new = [shape for shape in programs.shapes(grid) if shape not in seen]
            seen.update(new)
            self._steps.append((grid, new))
        self._total, self._done = len(seen), count(1)
        self._ready: SimpleQueue[Growth] = SimpleQueue()
        self._stopped = threading.Event()
        # not a daemon, as the thread that makes this one may be: the interpreter may not end while XLA compiles
        self._thread = threading.Thread(target=self._compile_later, name="compile", daemon=False)

    def compile_first(self) -> ExecutableTable:
        """Compile the shapes of the first grid, as many at once as this process may use cores."""
        all_of_them = [shape for _, shapes in self._steps for shape in shapes]
        self._report(f"compiling {self._total} shapes (decodes+prompt tokens): {', '.join(map(str, all_of_them))}")
        first = self._steps[0][1]
        lower = {shape: partial(self._programs.lower, shape) for shape in first}
        threads = min(len(first), cores())
        return ExecutableTable.compile(lower, threads, self._tell, self._programs.compiler_options)

    def start(self) -> None:
        """Begin with the other grids. Called at most once."""
        if len(self._steps) > 1:
            self._thread.start()

    def take(self) -> Growth | None:
        """The next grid whose programs are complete, in order; None if none is. Any thread may call it."""
        try:
            return self._ready.get_nowait()
        except Empty:
            return None

    def stop(self) -> None:
        """Compile no further shape; nobody waits for the one at hand. Any thread may call it."""
        self._stopped.set()

    def _compile_later(self) -> None:
        with Builder(self._programs.compiler_options) as builder:
            for grid, shapes in self._steps[1:]:
                made: dict[Shape, Compiled] = {}
                for shape in shapes:
                    if self._stopped.is_set():
                        return
                    try:
                        made[shape] = builder.build(partial(self._programs.lower, shape))
                    except Exception as error:
                        logger.error("compiling %s: %s", shape, error, exc_info=error)
                        self._report(f"{shape} could not be compiled: the server goes on with the shapes that it has")
                        return
                    self._tell(shape, made[shape])
                self._ready.put(Growth(grid, made))
        exempt_live_objects()  # compiling leaves tens of thousands
        self._report(f"all {self._total} shapes are compiled")

    def _tell(self, shape: Shape, made: Compiled) -> None:
        where = " (from the cache)" if made.cached else ""
        self._report(f"compiled {next(self._done)}/{self._total}: {shape} in {made.seconds:.1f} s{where}")
