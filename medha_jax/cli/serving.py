"""What `medha-jax serve` puts together: runtime, scheduler, time model, engine, service."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medha_jax.cli.opening import tell
from medha_jax.config import RuntimeConfig, SchedulerConfig
from medha_jax.engine import (
    Engine,
    EngineService,
    Event,
    FittedTimeModel,
    GenerationRequest,
    RequestOutput,
    TickReport,
    open_executor,
    scheduler_for,
)
from medha_jax.plan import SamplingParams
from medha_jax.scheduler.time_model import LEAST_TICKS, TimeModelError
from medha_jax.server.inference import Backend
from medha_jax.server.requests import ServedModel
from medha_jax.server.server import Listener

if TYPE_CHECKING:
    from medha_jax.runtime import Executor
    from medha_jax.runtime.cluster import ClusterConfig, ClusterExecutor

MEASURED_SECONDS = 3.0  # of ticks at a first start
MEASURED_OUTPUT = 4  # tokens of each request that is measured


@dataclass(frozen=True)
class Watchers:
    """Who is told what the engine does, in its thread: of a tick, and of the events that it brought."""

    on_tick: Callable[[TickReport], None]
    on_events: Callable[[list[tuple[int, Event]]], None]


class Loader:
    """Loads what a server serves; its owner calls `close` when the engine has stopped.

    Args:
        config: of the runtime.
        scheduling: of the scheduler.
        cluster: the processes of the mesh, if there are several.
        model: what is served; its context may turn out smaller.
        watchers: of the engine.
        clock: of the engine, in seconds.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        scheduling: SchedulerConfig,
        cluster: ClusterConfig | None,
        model: ServedModel,
        watchers: Watchers,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._scheduling, self._cluster = config, scheduling, cluster
        self._model, self._watchers, self._clock = model, watchers, clock
        self._times: tuple[FittedTimeModel, Path] | None = None
        self._leading: ClusterExecutor | None = None

    def load(self, listener: Listener) -> Backend:
        """Load the model, measure ticks where none are known, start the engine's thread."""
        executor = self._open()
        times = self._time_model(executor)
        tokenizer = self._model.tokenizer

        def output(request: GenerationRequest, limit: int) -> RequestOutput:
            return RequestOutput(request, tokenizer, limit=limit)

        if times.ticks < LEAST_TICKS:
            measured = dataclasses.replace(self._scheduling, prefix_cache=False)
            engine = Engine(executor, scheduler_for(executor, measured, times), times, self._clock, output)
            measure(engine, executor, self._clock)
            tell(f"measured {times.ticks} ticks")
        engine = Engine(executor, scheduler_for(executor, self._scheduling, times), times, self._clock, output)

        def heard(events: list[tuple[int, Event]]) -> None:
            self._watchers.on_events(events)
            listener(events)

        gc.collect()
        gc.freeze()  # to look at all that was loaded takes 0.1 to 0.3 s, in the middle of a tick
        service = EngineService(engine, heard, self._clock, on_tick=self._watchers.on_tick)
        service.start()
        return Backend(service, dataclasses.replace(self._model, context=executor.context))

    def close(self) -> None:
        """Let the other processes go, and keep what was learnt about the time of ticks for the next start."""
        if self._leading is not None:
            import jax

            self._leading.close()
            with contextlib.suppress(RuntimeError):  # one that is gone already
                jax.distributed.shutdown()  # else the others would wait for this process to do so
        if self._times is not None:
            times, path = self._times
            with contextlib.suppress(OSError):  # a full disk is no reason to fail now
                path.parent.mkdir(parents=True, exist_ok=True)
                times.save(path)

    def _open(self) -> Executor:
        if self._cluster is None:
            return open_executor(self._config, tell)
        import jax

        from medha_jax.runtime.cluster import lead

        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
        self._leading = lead(self._config, self._cluster, tell)
        return self._leading

    def _time_model(self, executor: Executor) -> FittedTimeModel:
        """What is known of this model, mesh, dtype and device; nothing, where nothing is."""
        import jax

        mesh, cache = self._config.mesh, self._config.compilation_cache
        key = {
            "model": str(self._config.model.resolve()),
            "mesh": f"tp={mesh.tp},spp={mesh.spp},kvp={mesh.kvp}",
            "dtype": self._config.dtype,
            "device": jax.devices()[0].device_kind,
        }
        if cache is None:
            return FittedTimeModel(key)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        path = cache / "time_models" / f"{digest}.json"
        try:
            times = FittedTimeModel.load(path, key)
            tell(f"time of ticks is known from {times.ticks} earlier ones")
        except TimeModelError:
            times = FittedTimeModel(key)
        self._times = times, path
        return times


def measure(engine: Engine, executor: Executor, clock: Callable[[], float]) -> None:
    """Run prompts of every shape that was compiled, for MEASURED_SECONDS at most, so that the time model has ticks."""
    vocab, context = executor.arch.vocab, executor.context
    draw = np.random.default_rng(0)
    end = clock() + MEASURED_SECONDS
    for length in _lengths(executor):
        prompt = tuple(draw.integers(vocab, size=min(length, context - MEASURED_OUTPUT)).tolist())
        sampling = SamplingParams(temperature=0, max_tokens=MEASURED_OUTPUT, ignore_eos=True)
        if not prompt:
            return
        number = engine.add(GenerationRequest(prompt, sampling))
        while engine.busy and clock() < end:
            engine.step()
        if engine.busy:
            engine.cancel(number)
            while engine.busy:
                engine.step()
            return


def _lengths(executor: Executor) -> Iterator[int]:
    """Prompt lengths: what fills each prompt shape, in turn."""
    sizes = executor.config.mesh.buckets.prefill
    while True:
        for size in sizes:
            yield size
            yield 2 * size + size // 2
