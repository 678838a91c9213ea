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


class Builder:
    """Traces, lowers and compiles programs in any number of threads. A context manager: it listens to JAX's cache.

    `options` are XLA options by name (str, bool or int), beside XLA's defaults.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self._options = dict(options) if options else None
        self._found: set[int] = set()  # threads whose current compilation hit the cache

    def __enter__(self) -> Builder:
        jax.monitoring.register_event_listener(self._listen)
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_event_listener(self._listen)

    def build(self, lower: Callable[[], stages.Lowered]) -> Compiled:
        """Compile what `lower` traces and lowers."""
        self._found.discard(threading.get_ident())
        started = time.perf_counter()
        program = lower().compile(self._options)
        return Compiled(program, time.perf_counter() - started, threading.get_ident() in self._found)

    def _listen(self, event: str, **_: object) -> None:
        if event == CACHE_HIT:
            self._found.add(threading.get_ident())


class ExecutableTable:
    """Owner of the compiled programs. Nothing compiles when one is asked for: an unknown shape is an error."""

    def __init__(self, programs: Mapping[Shape, Compiled]) -> None:
        self._programs = dict(programs)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The compiled shapes: ticks, then slices, smallest first."""
        return tuple(sorted(self._programs, key=lambda shape: (isinstance(shape, SliceShape), shape)))

    def compiled(self, shape: Shape) -> stages.Compiled:
        """The program of a shape. Raises UnknownShapeError if there is none."""
        try:
            return self._programs[shape].program
        except KeyError:
            known = ", ".join(map(str, self.shapes))
            raise UnknownShapeError(f"shape {shape} was not compiled; compiled are {known}") from None

    def add(self, programs: Mapping[Shape, Compiled]) -> None:
        """Take in programs that were compiled since."""
        self._programs.update(programs)

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
            options: as for `Builder`.
        """
        programs: dict[Shape, Compiled] = {}
        with Builder(options) as builder, ThreadPoolExecutor(threads) as pool:
            futures = {pool.submit(builder.build, lower[shape]): shape for shape in lower}
            for future in as_completed(futures):
                shape = futures[future]
                programs[shape] = future.result()
                on_done(shape, programs[shape])
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
