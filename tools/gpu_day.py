"""What to run first where there is a GPU, in less than ten minutes: `python -m tools.gpu_day`.

On one GPU, in this order: greedy generation and the compiled programs against the CPU (`tools.gpu_program`); a prompt
in slices against the same prompt in ticks; then times with the sizes of Llama-3 8B and random weights, beside those of
an earlier run: ticks of every shape, the host's part of a tick, and slices against whole chunks. `tools.gpu_check`
measures the kernels alone, `tools.gpu_mesh_check` several GPUs. `--small` is a trial with a tiny model on any machine;
its times mean nothing. Exit code: 0 if all checks passed, 1 if one failed, 2 for bad arguments, 3 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.gpu.counts import LLAMA_3_8B
from benchmarks.gpu.device import NO_GPU
from medha_jax.attention.gpu.launch import GpuTarget, LaunchError
from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.runtime import MeshExecutor
from tools.gpu_correctness import Outcome
from tools.gpu_loads import LARGEST_PAGE, LoadSizes, decode_times, final_logits_of, prefill_seconds, slice_seconds
from tools.gpu_mesh_layout import CHECKED, TINY, open_random

NEAR = 1e-3  # logits of float32, relative to the largest


@dataclass(frozen=True)
class DaySizes:
    """The models and loads.

    Args:
        checked: the model whose slices are checked; `model` is timed, in `dtype`.
        decodes, chunks: sizes of the shapes; decodes come after `context` tokens.
    """

    checked: dict[str, Any]
    model: dict[str, Any]
    dtype: str
    decodes: tuple[int, ...]
    chunks: tuple[int, ...]
    context: int
    ticks: int

    def loads(self, decodes: int, chunk: int) -> LoadSizes:
        """The loads of one shape."""
        return LoadSizes(decodes, self.context, chunk, chunks=6, ticks=self.ticks)


FULL = DaySizes(CHECKED, LLAMA_3_8B, "bfloat16", (8, 64), (512, 4096), context=1024, ticks=32)
FEW_LAYERS = {**TINY, "num_hidden_layers": 2}
SMALL = DaySizes(FEW_LAYERS, FEW_LAYERS, "float32", (2,), (32,), context=32, ticks=2)


@dataclass(frozen=True)
class Timing:
    """One time, and that of the earlier run if it has one."""

    name: str
    milliseconds: float
    before: float | None = None

    def line(self) -> str:
        """The time as text."""
        then = (
            ""
            if self.before is None
            else f"  before {self.before:9.3f} ms, {self.milliseconds / self.before:.2f} of it"
        )
        return f"{self.name:48s} {self.milliseconds:9.3f} ms{then}"


@dataclass
class DayReport:
    """Results so far, written to `file` after each part. Owned by `main`."""

    file: Path
    facts: dict[str, Any]
    before: dict[str, float]
    outcomes: list[Outcome] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def check(self, outcomes: Iterable[Outcome]) -> None:
        """Record checks and print each."""
        for outcome in outcomes:
            self.outcomes.append(outcome)
            print(outcome.line(), flush=True)

    def measure(self, times: Iterable[tuple[str, float]]) -> None:
        """Record times in seconds and print each."""
        for name, seconds in times:
            timing = Timing(name, seconds * 1e3, self.before.get(name))
            self.timings.append(timing)
            print(timing.line(), flush=True)

    def write(self) -> None:
        """Write everything as JSON."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        checks, times = [asdict(one) for one in self.outcomes], {one.name: one.milliseconds for one in self.timings}
        stated = dict(facts=self.facts, checks=checks, milliseconds=times, seconds=self.seconds)
        self.file.write_text(json.dumps(stated, indent=1) + "\n", encoding="utf-8")


def opened(sizes: DaySizes, dtype: str, **settings: Any) -> MeshExecutor:
    """A runtime on the first device with a shape of every pair of sizes, and slices of every chunk."""
    largest = sizes.loads(sizes.decodes[-1], sizes.chunks[-1])
    page = min(LARGEST_PAGE, sizes.chunks[0])
    mesh = MeshConfig(
        page_size=page, buckets=Buckets(decode=sizes.decodes, prefill=sizes.chunks, chunks=1, slices=sizes.chunks)
    )
    config = RuntimeConfig(
        mesh=mesh,
        slots=sizes.decodes[-1],
        max_context=max(largest.chunk * largest.chunks, largest.context + 4 * largest.ticks),
        pool_tokens=largest.pool_tokens,
        compilation_cache=None,
        **settings,
    )
    return open_random(config, sizes.model, dtype)


def check_slices(sizes: DaySizes) -> Iterator[Outcome]:
    """A prompt in slices of every length against the same prompt in ticks, in float32."""
    small = replace(sizes, model=sizes.checked, decodes=(1,), chunks=(64,), context=64, ticks=2)
    with jax.default_matmul_precision("highest"):
        executor = opened(small, "float32", keep_logits=True)
        loads = small.loads(1, 64)
        wanted = final_logits_of(executor, loads, None)
        for layers in executor.slice_lengths:
            off = float(np.abs(final_logits_of(executor, loads, layers) - wanted).max() / np.abs(wanted).max())
            yield Outcome(f"a prompt in slices of {layers} against ticks", off < NEAR, f"logits within {off:.1e}")


def times(sizes: DaySizes) -> Iterator[tuple[str, float]]:
    """Every time by name, in seconds: ticks of decodes and the host's part, chunks, and slices of them."""
    executor = opened(sizes, sizes.dtype)
    for decodes in sizes.decodes:
        seconds, host = decode_times(executor, sizes.loads(decodes, sizes.chunks[-1]))
        yield f"tick of {decodes} decodes at {sizes.context:,}", seconds
        yield f"host's part of a tick of {decodes} decodes", host
    for chunk in sizes.chunks:
        loads = sizes.loads(1, chunk)
        yield f"tick of a chunk of {chunk:,}", prefill_seconds(executor, loads)
        for layers in executor.slice_lengths:
            yield f"chunk of {chunk:,} in slices of {layers}", slice_seconds(executor, loads, layers)


def run(report: DayReport, sizes: DaySizes, device: jax.Device | None, minutes: float) -> None:
    """Run every part. One that raises, or that has no time left, is a failed check. `device` is the GPU."""
    parts: dict[str, Callable[[], None]] = dict(
        slices=lambda: report.check(check_slices(sizes)), times=lambda: report.measure(times(sizes))
    )
    if device is not None:
        from tools.gpu_program import check_generation

        parts = dict(program=lambda: report.check(check_generation(device)), **parts)
    begun = time.monotonic()
    for name, part in parts.items():
        started = time.monotonic()
        print(f"-- {name}", flush=True)
        try:
            if started - begun > 60 * minutes:
                report.check([Outcome(name, False, f"left out: {minutes:g} minutes are over")])
            else:
                part()
        except Exception as error:  # the next part may still work
            traceback.print_exc()
            report.check([Outcome(name, False, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")])
        report.seconds[name] = round(time.monotonic() - started, 1)
        report.write()


def earlier(file: Path | None) -> dict[str, float]:
    """Times of an earlier run by name, in milliseconds.

    Raises:
        ValueError: the file is not one that this script wrote.
    """
    if file is None:
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["milliseconds"]
        return {str(name): float(value) for name, value in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} has no times of an earlier run: {type(error).__name__}: {error}") from None


def main(arguments: list[str] | None = None) -> int:
    """Check and measure; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_day"), help="folder of the JSON")
    parser.add_argument("--before", type=Path, help="gpu_day.json of an earlier run, to show its times beside these")
    parser.add_argument("--minutes", type=float, default=6.0, help="after which no further part begins")
    parser.add_argument("--small", action="store_true", help="a tiny model on any machine, to try this out")
    given = parser.parse_args(arguments)
    try:
        before = earlier(given.before)
    except ValueError as error:
        parser.error(str(error))
    device = jax.devices()[0]
    try:
        found = dict(gpu=GpuTarget.of(device).name)
    except LaunchError as error:
        if not given.small:
            print(f"gpu_day: nothing was checked: {error}", file=sys.stderr)
            return NO_GPU
        found = dict(device=device.device_kind)
    report = DayReport(given.out / "gpu_day.json", found | dict(jax=jax.__version__, small=given.small), before)
    run(report, SMALL if given.small else FULL, None if given.small else device, given.minutes)
    print("\n" + "\n".join(one.line() for one in report.timings))
    failed = [one for one in report.outcomes if not one.passed]
    for one in failed:
        print(one.line())
    print(f"{len(report.outcomes) - len(failed)} checks passed, {len(failed)} failed; written to {report.file}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
