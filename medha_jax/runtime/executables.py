"""Programs compiled ahead, one per shape. Ticks and slices run only programs from this table."""

from __future__ import annotations

import logging
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax import stages
from jax.experimental.compilation_cache import compilation_cache

from medha_jax.machine import cpu_kind
from medha_jax.runtime.shapes import Shape, SliceShape
from medha_jax.specs.buckets import UnknownShapeError

LEAST_ROOM = 2**20  # bytes that a directory must take to be used as a cache
CACHE_ERROR = re.compile("Error (reading|writing) persistent compilation cache entry")
CACHE_HIT = "/jax/compilation_cache/cache_hits"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compiled:
    """A compiled program, its compile time in seconds, and whether it came from the persistent cache."""

    program: stages.Compiled
    seconds: float
    cached: bool


class Builder:
    """Traces, lowers and compiles programs in any number of threads. A context manager: it listens to JAX's cache.

    What JAX warns of every entry of the cache that it cannot read or write is one line in the log, once. `options` are
    XLA options by name (str, bool or int), beside XLA's defaults.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self._options = dict(options) if options else None
        self._found: set[int] = set()  # threads whose current compilation hit the cache
        self._show = warnings.showwarning
        self._refused = False

    def __enter__(self) -> Builder:
        jax.monitoring.register_event_listener(self._listen)
        self._show = warnings.showwarning
        warnings.showwarning = self._warned
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_event_listener(self._listen)
        if warnings.showwarning == self._warned:
            warnings.showwarning = self._show

    def build(self, lower: Callable[[], stages.Lowered]) -> Compiled:
        """Compile what `lower` traces and lowers."""
        self._found.discard(threading.get_ident())
        started = time.perf_counter()
        program = lower().compile(self._options)
        return Compiled(program, time.perf_counter() - started, threading.get_ident() in self._found)

    def _listen(self, event: str, **_: object) -> None:
        if event == CACHE_HIT:
            self._found.add(threading.get_ident())

    def _warned(self, message: Warning | str, *where: Any, **how: Any) -> None:
        text = str(message)
        if not CACHE_ERROR.match(text):
            self._show(message, *where, **how)
        elif not self._refused:
            self._refused = True
            logger.warning(
                "the cache of compiled programs: %s; it is compiled; if this comes again, delete the directory",
                " ".join(text.split()),
            )


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


def use_compilation_cache(directory: Path) -> None:
    """Turn on JAX's persistent compilation cache for every program, however quickly it compiles.

    JAX opens a cache once and keeps its directory, so an open cache is closed first. Entries without content, which a
    full disk leaves, are removed: JAX would refuse them at every start and never replace them.

    Raises:
        OSError: the directory cannot be made, or has no room.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as probe:
        probe.write(bytes(LEAST_ROOM))
        probe.flush()
    for entry in directory.glob("*-cache"):
        if not entry.stat().st_size:
            entry.unlink(missing_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    compilation_cache.reset_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def open_cache(directory: Path | None, on_cpu: bool, tell: Callable[[str], Any]) -> None:
    """Use a cache of compiled programs, or none, and `tell` so in a line. A cache saves time, so none is no error.

    Programs for CPUs lie in a folder for this kind of CPU: JAX knows no kinds of them, and one that has other
    instructions would refuse a program, or die of it.
    """
    if directory is None:
        why = "no directory is stated, and the user has no home"
    else:
        try:
            return use_compilation_cache(directory / cpu_kind() if on_cpu else directory)
        except OSError as error:
            why = f"{directory}: {error.strerror}"
    tell(f"every start compiles all programs, because there is no place to keep them ({why}); set MEDHA_JAX_CACHE")
