"""How long the engine's thread is away from the devices: `python -m benchmarks.engine_thread [--prompt 1000000]`.

A long prompt of random ids is computed beside requests that decode. The devices are simulated and take no time, so the
thread does nothing but its own work. A *gap* lasts from the end of one call of the executor to the begin of the next.
It prints the bytes that the prompt takes, and the longest gaps of a new prompt and of one that is cached. One with more
wall than CPU time waited for a core.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from typing import Any

import numpy as np

from benchmarks.measure import machine
from medha_jax.collector import exempt_live_objects
from medha_jax.config import Buckets, MeshConfig, RuntimeConfig, SchedulerConfig
from medha_jax.engine import Engine, EngineService, ErrorLog, GenerationRequest, Prefilled, scheduler_for
from medha_jax.engine.loop import Events
from medha_jax.plan import SamplingParams
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.simulate.clock import VirtualClock
from medha_jax.simulate.counted_output import CountedOutput
from medha_jax.simulate.executor import SimulatedExecutor
from medha_jax.simulate.times import SummedTimes

BUCKETS = Buckets(decode=(1, 8), prefill=(64, 256, 512, 1024, 2048, 4096, 8192), chunks=8, slices=())
PAGE = MeshConfig().page_size
VOCAB = 128_000
DECODES, SHORT = 8, 1000  # requests that decode beside the long one, and tokens of their prompts
# assumed; about an 8B model on eight devices
MODEL = LinearTimeModel(fixed=5e-3, tokens=8e-6, attention=7e-11, context=2e-9, rows=1e-6)


class TimedExecutor:
    """An executor that notes the gaps between its calls: name of the next call, wall and CPU milliseconds."""

    def __init__(self, executor: SimulatedExecutor) -> None:
        self._executor = executor
        self._left = time.perf_counter(), time.thread_time()
        self.gaps: list[tuple[float, float, str]] = []

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._executor, name)
        if name not in {"submit", "submit_slice", "collect", "admit", "adopt"}:
            return call

        def timed(*args: Any) -> Any:
            wall, own = time.perf_counter() - self._left[0], time.thread_time() - self._left[1]
            self.gaps.append((1e3 * wall, 1e3 * own, name))
            try:
                return call(*args)
            finally:
                self._left = time.perf_counter(), time.thread_time()

        return timed


def measure(prompt: int, prefix_cache: bool) -> None:
    """Serve one long prompt beside short ones that decode, and print the figures."""
    clock, done = VirtualClock(), [0]
    mesh = MeshConfig(page_size=PAGE, buckets=BUCKETS)
    config = RuntimeConfig(mesh=mesh, slots=16, pool_tokens=2**20 + 2 * prompt, compilation_cache=None)
    executor = TimedExecutor(SimulatedExecutor(config, 2 * prompt, SummedTimes(MODEL), clock, vocab=VOCAB))
    scheduler = scheduler_for(executor, SchedulerConfig(prefix_cache=prefix_cache), MODEL)
    engine = Engine(executor, scheduler, MODEL, clock, CountedOutput, on_error=ErrorLog(clock))

    def listen(events: Events) -> None:
        done[0] = max([done[0], *(event.done for _, event in events if isinstance(event, Prefilled))])

    service = EngineService(engine, listen, clock)
    service.start()
    rng = np.random.default_rng(0)

    def request(tokens: int, output: int) -> GenerationRequest:
        ids = rng.integers(0, VOCAB, tokens, np.int32).tolist()
        return GenerationRequest(ids, SamplingParams(temperature=0, max_tokens=output))

    def until(tokens: int) -> None:
        while done[0] < tokens and service.healthy:
            time.sleep(0.01)

    long = request(prompt, 2)
    decodes = [service.submit(request(SHORT, prompt // 2)) for _ in range(DECODES)]
    until(SHORT)
    longest = {}
    for name in ("new", "cached") if prefix_cache else ("new",):
        executor.gaps.clear()
        done[0] = 0
        service.submit(long)
        until(prompt)
        time.sleep(0.1)  # it ends, and its pages come back
        longest[name] = sorted(executor.gaps, reverse=True)
    for number in decodes:
        service.cancel(number)
    tracemalloc.start()
    service.submit(request(prompt, 1))
    while service.load().waiting and service.healthy:
        time.sleep(0.001)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    service.stop()
    print(f"{prompt:,} tokens beside {DECODES} decodes, prefix cache {'on' if prefix_cache else 'off'}:")
    print(f"  {kept / prompt:.1f} bytes a token")
    for name, gaps in longest.items():
        print(f"  {name}: {len(gaps):,} gaps, median {gaps[len(gaps) // 2][0]:.2f} ms; longest:")
        for wall, own, call in gaps[:5]:
            print(f"    {wall:8.2f} ms (CPU {own:.2f}) before {call}")


def main() -> None:
    """Measure and print, with the prefix cache and without."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=1_000_000)
    given = parser.parse_args()
    exempt_live_objects()  # as a server does when it is loaded
    print(machine())
    for prefix_cache in (True, False):
        measure(given.prompt, prefix_cache)


if __name__ == "__main__":
    main()
