"""What the host does for a tick, step by step: `python -m benchmarks.host_tick [--case 128 --case 128+4096]`.

The real scheduler, packing, reading of results, engine, detokenizer and streams run; only the devices and the network
are not there. It prints the median microseconds of each step for ticks of 1, 32 and 128 decodes, and of 128 decodes
beside a prompt's chunk of 4,096 tokens. Layout: one device, pages of 64 tokens, heads as in an 8B model.

- plan: `Scheduler.plan`.
- pack: the array that a tick takes, for attention in XLA and for the kernels.
- results: from the array that a tick returns to a `TokenResult` of every request.
- engine: the rest of `Engine.step`: cursors, events, and the text, which stands by itself under text.
- stream: from events to serialized messages, with a coroutine for every stream; gRPC itself is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.measure import machine
from medha_jax.attention import Attention, GpuTarget, KernelAttention, XlaAttention
from medha_jax.attention.gpu.launch import shipped_table
from medha_jax.collector import exempt_live_objects
from medha_jax.config import BUNDLED_MODEL, Buckets, MeshConfig, RuntimeConfig, SchedulerConfig
from medha_jax.engine import Engine, GenerationRequest, scheduler_for, text_outputs
from medha_jax.plan import SamplingParams, StepPlan, TokenResult
from medha_jax.runtime.packing import Geometry, bucket_for, pack
from medha_jax.runtime.plan_columns import PlanColumns
from medha_jax.runtime.plan_layout import PlanLayout
from medha_jax.runtime.tick_results import FINITE, TickHandle, TickOutput, local_results
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.server.access_log import Record
from medha_jax.server.inference import Inference
from medha_jax.server.settings import Limits
from medha_jax.server.streams import Streams
from medha_jax.simulate.clock import VirtualClock
from medha_jax.simulate.executor import SimulatedExecutor, SimulatedTick
from medha_jax.simulate.times import SummedTimes
from medha_jax.tenants import TenantCounts
from medha_jax.text import Tokenizer
from medha_jax.token_ids import IdArray

CASES = {"1": (1, 0), "32": (32, 0), "128": (128, 0), "128+4096": (128, 4096)}  # decodes, tokens of a chunk
BUCKETS = Buckets(decode=(1, 8, 32, 128), prefill=(64, 512, 4096), chunks=8, slices=())
PAGE, SLOTS, CONTEXT, VOCAB = 64, 136, 2**21, 2048
WARM = 32  # ticks before those that count
PROMPTS = range(500, 1500)  # tokens of the prompts whose answers are decoded
MODEL = LinearTimeModel(fixed=5e-3, tokens=1e-6, attention=1e-12, context=1e-9, rows=1e-6)
ATTENTION: dict[str, Attention] = {
    "XLA": XlaAttention("asked for"),
    "kernels": KernelAttention(GpuTarget("NVIDIA H200", 90, 132), shipped_table(), 8, 4, 128, "bfloat16"),
}
Spent = dict[str, list[float]]


class HostExecutor(SimulatedExecutor):
    """Packs every plan and reads made-up results, as `MeshExecutor` does. Owns the times of both."""

    def __init__(self, config: RuntimeConfig, clock: VirtualClock, spent: Spent) -> None:
        super().__init__(config, CONTEXT, SummedTimes(MODEL), clock, vocab=VOCAB)
        self._spent, self._rng = spent, np.random.default_rng(0)
        self._geometry = Geometry(1, PAGE, 2**31, SLOTS, BUCKETS, None)
        self._layouts: dict[Any, PlanLayout] = {}
        self.away = 0.0  # seconds in calls of this class

    def submit(self, plan: StepPlan) -> Any:
        """Pack a plan once for each attention."""
        began = time.perf_counter()
        handle = super().submit(plan)
        for name, attention in ATTENTION.items():
            started = time.perf_counter()
            columns = PlanColumns.of(plan)
            bucket = bucket_for([columns], self._geometry)
            key = name, bucket
            if key not in self._layouts:
                self._layouts[key] = PlanLayout(bucket, PAGE, attention.layout(bucket))
            pack([columns], self._layouts[key], self._geometry)
            self._spent[f"pack, {name}"].append(time.perf_counter() - started)
        values = np.zeros((1, bucket.samples, 3), np.int32)
        values[..., 0], values[..., 1] = self._rng.integers(256, VOCAB, bucket.samples), FINITE
        output = TickOutput(jnp.asarray(values), jnp.zeros((1, bucket.samples, 0)))
        self.away += time.perf_counter() - began
        return handle, TickHandle(columns, bucket, output)

    def collect(self, handle: tuple[SimulatedTick, TickHandle]) -> list[TokenResult]:  # type: ignore[override]
        """Read the results of a tick."""
        began = time.perf_counter()
        super().collect(handle[0])
        started = time.perf_counter()
        found = local_results(handle[1])
        results = [found[number] for number in range(len(handle[1].leaving.chunks))]
        self._spent["results"].append(time.perf_counter() - started)
        self.away += time.perf_counter() - began
        return results


class Written:
    """The context of a call whose messages are serialized and dropped. Counts them."""

    def __init__(self) -> None:
        self.count = 0

    async def write(self, message: Any) -> None:
        """Serialize a message."""
        message.SerializeToString()
        self.count += 1


def timed(work: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """`work`, which notes how long it takes."""

    def run(*given: Any) -> Any:
        started = time.perf_counter()
        try:
            return work(*given)
        finally:
            spent.append(time.perf_counter() - started)

    return run


async def measure(decodes: int, chunk: int, ticks: int) -> dict[str, float]:
    """Median microseconds of each step of ticks with so many decodes, beside a chunk if it has tokens."""
    spent: Spent = defaultdict(list)
    clock, tokenizer = VirtualClock(), Tokenizer.from_directory(BUNDLED_MODEL)
    mesh = MeshConfig(page_size=PAGE, buckets=BUCKETS)
    config = RuntimeConfig(mesh=mesh, slots=SLOTS, pool_tokens=2 * CONTEXT, compilation_cache=None)
    executor = HostExecutor(config, clock, spent)
    scheduler = scheduler_for(executor, SchedulerConfig(tpot_target_s=10.0), MODEL)
    engine = Engine(executor, scheduler, MODEL, clock, text_outputs(tokenizer))
    setattr(scheduler, "plan", timed(scheduler.plan, spent["plan"]))  # noqa: B010
    streams, written = Streams(Limits()), Written()
    server = Inference(None, streams, Limits(), 2**20)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    writers: list[asyncio.Future[None]] = []

    def request(tokens: int, output: int, chunks: tuple[int, ...] | None = None) -> None:
        ids = IdArray(rng.integers(0, VOCAB, tokens, np.int32))
        sampling = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
        stream = streams.open("", str(len(writers)), TenantCounts())
        streams.expect()
        streams.bind(stream, engine.add(GenerationRequest(ids, sampling, chunks=chunks)))
        writers.append(
            asyncio.ensure_future(server._write(stream, lambda event, _: written.write(event), Record("Generate", "")))
        )

    for length in rng.choice(PROMPTS, decodes).tolist():
        request(length, 4 * ticks + 4 * decodes + 2 * WARM)
    while engine.load.waiting or any(not state.generated for state in scheduler._running.holders):
        engine.step()
    if chunk:
        request(chunk * (ticks + 2 * WARM), 1, (chunk,))
    for tick in range(ticks + WARM):
        if tick == WARM:
            for times in spent.values():
                times.clear()
        executor.away, began = 0.0, time.perf_counter()
        events = engine.step()
        step = time.perf_counter() - began - executor.away
        spent["engine"].append(step - spent["plan"][-1])
        assert [chunk.length for chunk in executor._flight[0][0].chunks if chunk.length > 1] == [chunk] * bool(chunk)
        expected, started = written.count + decodes, time.perf_counter()
        streams.listen(events)
        while written.count < expected:
            await asyncio.sleep(0)
        spent["stream"].append(time.perf_counter() - started)
    for writer in writers:
        writer.cancel()
    spent["text"] = text_seconds(tokenizer, decodes, ticks)
    return {name: 1e6 * statistics.median(times) for name, times in spent.items()}


def text_seconds(tokenizer: Tokenizer, decodes: int, ticks: int) -> list[float]:
    """Seconds in which so many requests take one more token each."""
    rng = np.random.default_rng(1)
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    request = GenerationRequest(IdArray(rng.integers(0, VOCAB, 100, np.int32)), sampling)
    make = text_outputs(tokenizer)
    outputs, seconds = [make(request, CONTEXT) for _ in range(decodes)], list[float]()
    for _ in range(ticks):
        tokens = rng.integers(256, VOCAB, decodes).tolist()
        started = time.perf_counter()
        for output, token in zip(outputs, tokens, strict=True):
            output.push(token)
        seconds.append(time.perf_counter() - started)
    return seconds


def steps() -> tuple[str, ...]:
    """Names of the steps, in the order of a tick."""
    return ("plan", *(f"pack, {name}" for name in ATTENTION), "results", "engine", "text", "stream")


def main() -> None:
    """Measure and print each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--ticks", type=int, default=200)
    given = parser.parse_args()
    exempt_live_objects()  # as a server does when it is loaded
    print(machine())
    print("microseconds a tick (median)")
    print(f"{'decodes':>10} " + " ".join(f"{name:>13}" for name in steps()) + f" {'a token':>9}")
    for case in given.case or CASES:
        found = asyncio.run(measure(*CASES[case], given.ticks))
        each = sum(found[name] for name in ("plan", "pack, XLA", "results", "engine", "stream")) / CASES[case][0]
        print(f"{case:>10} " + " ".join(f"{found[name]:13.1f}" for name in steps()) + f" {each:9.1f}", flush=True)


if __name__ == "__main__":
    main()
