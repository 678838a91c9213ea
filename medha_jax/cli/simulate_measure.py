"""`medha-jax simulate measure`: ticks of a real model on this machine, for a simulator that is calibrated to it."""

from __future__ import annotations

import math
import platform
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medha_jax.cli.mesh import MeshOption, mesh_config
from medha_jax.config import BUNDLED_MODEL, RuntimeConfig, SchedulerConfig

if TYPE_CHECKING:
    from medha_jax.engine import Engine, GenerationRequest, TickReport

LEAST_PROMPT, MOST_OUTPUT = 2, 32


def measure(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the measured ticks go, as JSON.")],
    model: Annotated[str, typer.Option(metavar="tiny|DIR", help="The bundled model or a model directory.")] = "tiny",
    mesh: MeshOption = "cpu-small",
    max_context: Annotated[int, typer.Option(min=64, metavar="N", help="Prompt and output, in tokens.")] = 8192,
    slots: Annotated[int, typer.Option(min=1, metavar="N", help="Requests at once.")] = 8,
    pool_tokens: Annotated[
        int | None, typer.Option(min=64, metavar="N", help="KV tokens of each group. Default: for all slots.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, max=3600, metavar="S", help="How long to measure.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Of the requests.")] = 0,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take the ticks that `serve --trace` wrote, and run nothing."),
    ] = None,
) -> None:
    """Run random requests through the real engine and write down what every tick did and took.

    Prompts are of all lengths (uniform in their logarithm), outputs of up to 32 tokens, one to all slots in use. With
    --trace they are those of a server, whose layout, context, slots and pool have to be stated as it had them.
    """
    if trace is not None:
        _from_trace(out, trace, model, mesh, max_context, slots, pool_tokens)
        return
    import jax

    from medha_jax.engine import Engine as Loop
    from medha_jax.engine import FittedTimeModel, scheduler_for
    from medha_jax.runtime import open_executor
    from medha_jax.simulate.calibration import write_ticks
    from medha_jax.simulate.output import CountedOutput

    directory = BUNDLED_MODEL if model == "tiny" else Path(model)
    config = RuntimeConfig(
        model=directory,
        mesh=mesh_config(mesh),
        max_context=max_context,
        slots=slots,
        pool_tokens=pool_tokens or slots * max_context,
    )
    executor = open_executor(config, _tell)
    times = FittedTimeModel({})
    scheduler = scheduler_for(executor, SchedulerConfig(prefix_cache=False), times)
    recorder = _Recorder()
    engine = Loop(executor, scheduler, times, time.perf_counter, CountedOutput, on_tick=recorder)
    _serve(engine, recorder, random.Random(seed), executor.sizes.context, executor.vocab, slots, seconds)
    about = {
        "model": model if model == "tiny" else directory.name,
        "device": f"{platform.processor() or platform.machine()}, {jax.devices()[0].platform}",
        "dtype": "float32" if jax.devices()[0].platform == "cpu" else "bfloat16",
        "jax": jax.__version__,
    }
    write_ticks(out, about, executor.config, executor.sizes.context, recorder.ticks)
    _tell(f"wrote {len(recorder.ticks):,} ticks to {out}")


def _from_trace(
    out: Path, trace: Path, model: str, mesh: str, context: int, slots: int, pool_tokens: int | None
) -> None:
    """Write the ticks of a server's trace as a calibration."""
    from medha_jax.simulate.calibration import write_ticks
    from medha_jax.simulate.served_ticks import served_ticks

    ticks = served_ticks(trace)
    layout = mesh_config(mesh)
    config = RuntimeConfig(mesh=layout, slots=slots, pool_tokens=pool_tokens or slots * context)
    write_ticks(out, {"model": Path(model).name, "device": layout.hardware}, config, context, ticks)
    _tell(f"wrote {len(ticks):,} ticks to {out}")


class _Recorder:
    """Owns the ticks that were seen; the first of each shape is not kept."""

    def __init__(self) -> None:
        self.ticks: list[dict[str, Any]] = []
        self._seen: set[tuple[int, ...]] = set()
        self._ended = math.nan

    def __call__(self, report: TickReport) -> None:
        """Note a tick."""
        host, self._ended = report.started - self._ended, report.ended
        if not report.timed or report.bucket not in self._seen:
            self._seen.add(report.bucket)
            return
        stages: list[list[Any]] = [[] for _ in range(1 + max((one.stage for one in report.chunks), default=0))]
        for one in report.chunks:
            stages[one.stage].append([one.start, one.length, list(one.groups)])
        self.ticks.append(
            {
                "shape": list(report.bucket),
                "seconds": report.ended - report.started,
                "host_s": None if math.isnan(host) else host,
                "stages": stages,
            }
        )


def _serve(
    engine: Engine, recorder: _Recorder, rng: random.Random, context: int, vocab: int, slots: int, seconds: float
) -> None:
    """Keep a changing number of requests in the engine, for so long."""
    end, told = time.perf_counter() + seconds, time.perf_counter()
    active, wanted = 0, 1
    while (now := time.perf_counter()) < end:
        while active < wanted:
            engine.add(_request(rng, context, vocab))
            active += 1
        before = active
        active -= sum(not _goes_on(event) for _, event in engine.step())
        if active < before:
            wanted = rng.randint(1, slots)
        if now - told > 5:
            told = now
            _tell(f"{len(recorder.ticks):,} ticks, {end - now:.0f} s left")


def _goes_on(event: Any) -> bool:
    from medha_jax.engine import Completed, Failed

    return not isinstance(event, Completed | Failed)


def _request(rng: random.Random, context: int, vocab: int) -> GenerationRequest:
    from medha_jax.engine import GenerationRequest
    from medha_jax.plan import SamplingParams

    output = rng.randint(2, MOST_OUTPUT)
    prompt = round(math.exp(rng.uniform(math.log(LEAST_PROMPT), math.log(context - output))))
    ids = tuple(rng.randrange(vocab) for _ in range(prompt))
    return GenerationRequest(ids, SamplingParams(temperature=0, max_tokens=output, ignore_eos=True))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
