"""Loading of an engine that serves: runtime, scheduler, time model, thread."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medha_jax.config import Buckets, ConfigError, RuntimeConfig, SchedulerConfig
from medha_jax.engine.error_log import ErrorLog
from medha_jax.engine.events import GenerationRequest
from medha_jax.engine.executor import Executor
from medha_jax.engine.loop import Engine, OnTick
from medha_jax.engine.output import text_outputs
from medha_jax.engine.scheduling import scheduler_for
from medha_jax.engine.service import EngineService, Listener
from medha_jax.machine import cores, cpu_kind
from medha_jax.plan import SamplingParams
from medha_jax.scheduler.time_model import LEAST_TICKS, FittedTimeModel, TimeModelError
from medha_jax.text import Tokenizer

if TYPE_CHECKING:
    from medha_jax.runtime import MeshExecutor
    from medha_jax.runtime.cluster import ClusterConfig, ClusterExecutor, Leader

MEASURED_SECONDS = 5.0  # the most that ticks are measured at a first start, if FEW_TICKS ran
MOST_MEASURED_SECONDS = 20.0  # the same if fewer did
FEW_TICKS = 8
MEASURED_OUTPUT = 8  # output tokens of each measured request
LAST_SECONDS = 30.0  # from the loss of a process to the end of this one, if the engine's owner does not end it
WAITING_POOLS = 4  # prompts that wait have at most this many times the tokens of all pools


class EngineLoader:
    """Loads an engine; its owner calls `close` when the engine has stopped.

    Args:
        cluster: names the processes of the mesh if there are several; each of them compiles every shape first.
        tell: takes a line about each step of the start.
        complete: compile every shape before serving; else some of them beside it.

    Raises:
        ConfigError: there is a host tier without the prefix cache.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        scheduling: SchedulerConfig,
        cluster: ClusterConfig | None,
        tokenizer: Tokenizer,
        clock: Callable[[], float],
        tell: Callable[[str], None],
        complete: bool = False,
    ) -> None:
        self._config, self._scheduling, self._cluster = config, scheduling, cluster
        self._tokenizer, self._clock, self._say, self._complete = tokenizer, clock, tell, complete
        if config.host_kv_gib and not scheduling.prefix_cache:
            raise ConfigError("host_kv_gib keeps pages of the prefix cache, which is off; leave it at 0")
        self._times: tuple[FittedTimeModel, Path] | None = None
        self._leader: Leader | None = None
        self._leading: ClusterExecutor | None = None
        self._service: EngineService | None = None
        self._loss: str | None = None
        self._ask_to_stop: Callable[[str], None] = tell
        self._growing: MeshExecutor | None = None
        self._closed = False

    def load(
        self, listener: Listener, on_tick: OnTick | None = None, ask_to_stop: Callable[[str], None] | None = None
    ) -> EngineService:
        """Load the model, measure ticks if none are known, and start the engine's thread.

        `ask_to_stop` is called, at any time from now on, if another process of the mesh was asked to end, with a line
        about it; None for nobody to ask.
        """
        self._ask_to_stop = ask_to_stop or self._say
        executor = self._open()
        if executor.host.places and not executor.prefix_cacheable:
            self._say("the host tier stays empty: RoPE of this model depends on the length, so prefixes are not shared")
        times = self._time_model(executor.config)
        scheduling = _with_bounded_queue(self._scheduling, executor)

        output = text_outputs(self._tokenizer)
        if times.ticks < LEAST_TICKS:
            some = len(_lengths(executor.grid.own))
            measured = dataclasses.replace(scheduling, prefix_cache=False, max_waiting=some, max_waiting_tokens=None)
            engine = Engine(executor, scheduler_for(executor, measured, times), times, self._clock, output)
            measure_ticks(engine, executor, self._clock, times)
            self._say(f"measured {times.ticks} ticks")
        engine = Engine(
            executor,
            scheduler_for(executor, scheduling, times),
            times,
            self._clock,
            output,
            on_tick=on_tick,
            on_error=ErrorLog(self._clock),
        )
        service = EngineService(engine, listener, self._clock)
        service.start()
        self._service = service
        if self._loss is not None:
            service.fail(self._loss)
        if self._growing is not None and not self._closed:
            self._growing.compile_rest()
        return service

    def close(self) -> None:
        """Release the other processes, compile nothing more, and save the measured ticks for the next start."""
        self._closed = True
        if self._growing is not None:
            self._growing.stop_compiling()
        if self._leader is not None and self._leading is None:  # the start was given up
            self._give_up(self._leader)
        if self._leading is not None and self._loss is None:
            import jax

            self._leading.close()
            with contextlib.suppress(RuntimeError):  # a process may be gone already
                jax.distributed.shutdown()  # the other processes wait for it
        if self._times is not None:
            times, path = self._times
            with contextlib.suppress(OSError):  # a full disk must not fail the shutdown
                path.parent.mkdir(parents=True, exist_ok=True)
                times.save(path)

    def _open(self) -> Executor:
        if self._cluster is None:
            from medha_jax.runtime import open_executor

            self._growing = open_executor(self._config, self._say, self._complete)
            return self._growing
        from medha_jax.runtime.cluster import LeaderEvents, lead

        events = LeaderEvents(self._lost, self._end, self._asked_to_end, self._say)
        self._leading = lead(self._config, self._cluster, self._say, events, self._opened)
        return self._leading

    def _opened(self, leader: Leader) -> None:
        self._leader = leader
        if self._closed:
            self._give_up(leader)

    @staticmethod
    def _give_up(leader: Leader) -> None:
        leader.stop("process 0 was stopped before it was ready", failed=False, at_once=True)

    def _asked_to_end(self, process: int) -> None:
        self._ask_to_stop(f"process {process} was asked to end, so all processes do")

    def _lost(self, text: str) -> None:
        """A process is lost: the engine's owner is to end the streams."""
        self._loss = text
        if self._service is not None:
            self._service.fail(text)

    def _end(self, text: str) -> None:
        """End this process, at once if nothing is served yet, else if the engine's owner does not."""
        from medha_jax.runtime.cluster import leave

        if self._service is not None:
            time.sleep(LAST_SECONDS)
        if not self._closed:
            leave(text)

    def _time_model(self, config: RuntimeConfig) -> FittedTimeModel:
        """The time model saved for this model, mesh, dtype and device, or an empty one."""
        import jax

        cache, device = config.compilation_cache, jax.devices()[0]
        key = {
            "model": str(config.model.resolve()),
            "mesh": str(config.mesh),
            "dtype": config.dtype,
            # JAX calls every CPU "cpu"
            "device": f"{cores()} x {cpu_kind()}" if device.platform == "cpu" else device.device_kind,
        }
        if cache is None:
            return FittedTimeModel(key)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        path = cache / "time_models" / f"{digest}.json"
        try:
            times = FittedTimeModel.load(path, key)
            self._say(f"time of ticks is known from {times.ticks} earlier ones")
        except TimeModelError:
            times = FittedTimeModel(key)
        self._times = times, path
        return times


def _with_bounded_queue(config: SchedulerConfig, executor: Executor) -> SchedulerConfig:
    """The configuration with a limit of waiting tokens, if it states none."""
    mesh = executor.config.mesh
    most = config.max_waiting_tokens or WAITING_POOLS * mesh.kvp * executor.sizes.pages * mesh.page_size
    return dataclasses.replace(config, max_waiting_tokens=most)


def measure_ticks(engine: Engine, executor: Executor, clock: Callable[[], float], times: FittedTimeModel) -> None:
    """Run prompts of every shape that is there, so that the engine's time model knows its first ticks.

    Prompts of all lengths run together, again and again, until the model can be fitted. A slow machine stops in
    between, and the model is fitted to what there is: without a fit every tick would seem to be free.
    """
    vocab, longest = executor.vocab, executor.sizes.context - MEASURED_OUTPUT
    sampling = SamplingParams(temperature=0, max_tokens=MEASURED_OUTPUT, ignore_eos=True)
    draw = np.random.default_rng(0)
    began = clock()

    def over() -> bool:
        return clock() - began >= (MEASURED_SECONDS if times.ticks >= FEW_TICKS else MOST_MEASURED_SECONDS)

    while longest > 0:
        prompts = [draw.integers(vocab, size=min(length, longest)).tolist() for length in _lengths(executor.grid.own)]
        numbers = [engine.add(GenerationRequest(prompt, sampling)) for prompt in prompts]
        while engine.busy:
            engine.step()
            if over():
                for number in numbers:
                    engine.cancel(number)
        if times.ticks >= LEAST_TICKS or over():
            break
    times.settle(executor.slice_lengths[-1])


def _lengths(sizes: Buckets) -> list[int]:
    """Prompt lengths that fill each prompt shape of ticks and slices; first one with a longer context."""
    each = sorted({*sizes.prefill, *sizes.slices})
    return [5 * each[-1], *each, *(2 * size + size // 2 for size in each)]
