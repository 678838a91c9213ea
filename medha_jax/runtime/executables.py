"""Programs compiled ahead, one per shape. Ticks and slices run only programs from this table."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax import stages
from jax.experimental.compilation_cache import compilation_cache

from medha_jax.runtime.shapes import Shape, SliceShape
from medha_jax.specs.buckets import UnknownShapeError

CACHE_HIT = "/jax/compilation_cache/cache_hits"


@dataclass(frozen=True)
class Compiled:
    """A compiled program, its compile time in seconds, and whether it came from the persistent cache."""

    program: stages.Compiled
    seconds: float
    cached: bool


class ExecutableTable:
    """Owner of the compiled programs. It is filled once at start; an unknown shape is then an error."""

    def __init__(self, programs: Mapping[Shape, Compiled]) -> None:
        self._programs = dict(programs)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The compiled shapes: ticks, then slices, smallest first."""
        return tuple(sorted(self._programs, key=lambda shape: (isinstance(shape, SliceShape), shape)))

    def compiled(self, shape: Shape) -> stages.Compiled:
        """The program of a shape. Raises UnknownShapeError if the shape was not compiled at start."""
        try:
            return self._programs[shape].program
        except KeyError:
            known = ", ".join(map(str, self.shapes))
            raise UnknownShapeError(f"shape {shape} was not compiled; compiled are {known}") from None

    @classmethod
    def compile(
        cls,
        lower: Mapping[Shape, Callable[[], stages.Lowered]],
        threads: int,
        on_done: Callable[[Shape, Compiled], Any],
        options: Mapping[str, Any] | None = None,
    ) -> ExecutableTable:
        """Trace, lower and compile every shape, `threads` at once. `on_done` is called as each shape is ready.

        Args:
            lower: for each shape, the function that traces and lowers it.
            options: XLA options by name (str, bool or int), beside XLA's defaults.
        """
        found: set[int] = set()  # threads whose current compilation hit the cache

        def listen(event: str, **_: object) -> None:
            if event == CACHE_HIT:
                found.add(threading.get_ident())

        def build(shape: Shape) -> Compiled:
            found.discard(threading.get_ident())
            started = time.perf_counter()
            program = lower[shape]().compile(dict(options) if options else None)
            return Compiled(program, time.perf_counter() - started, threading.get_ident() in found)

        programs: dict[Shape, Compiled] = {}
        jax.monitoring.register_event_listener(listen)
        try:
            with ThreadPoolExecutor(threads) as pool:
                futures = {pool.submit(build, shape): shape for shape in lower}
                for future in as_completed(futures):
                    shape = futures[future]
                    programs[shape] = future.result()
                    on_done(shape, programs[shape])
        finally:
            jax.monitoring.unregister_event_listener(listen)
        return cls(programs)


def use_compilation_cache(directory: Path | None) -> None:
    """Turn on JAX's persistent compilation cache for every program, however quickly it compiles.

    JAX opens a cache once and keeps its directory, so an open cache is closed first.
    """
    if directory is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    compilation_cache.reset_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
