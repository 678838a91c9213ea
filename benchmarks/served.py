"""Real runs for comparison with the simulator: `medha-jax serve`, loaded by `medha-jax bench serve`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import probed
from medha_jax.bench.own_server import OwnServer
from medha_jax.results import RequestRecord
from medha_jax.results.files import read_run
from medha_jax.simulate.served_ticks import served_ticks

BENCH = (sys.executable, "-m", "medha_jax.cli", "bench", "serve")
WARMUP = 4  # requests before the first load; they do not count
TRACE, PROBES, TIMES = "trace.json", "probes.txt", "times.json"


@dataclass(frozen=True)
class Served:
    """A measured load: its requests by index, and its ticks in the form for a calibration."""

    records: tuple[RequestRecord, ...]
    ticks: list[dict[str, Any]]

    @property
    def seconds(self) -> float:
        """From the first tick to the last."""
        return float(self.ticks[-1]["at"] - self.ticks[0]["at"])

    @property
    def busy_s(self) -> float:
        """Seconds in which ticks ran."""
        return float(sum(tick["seconds"] for tick in self.ticks))

    @property
    def began(self) -> float:
        """Start of the records' clock on the ticks' clock, in seconds: the first request was sent at the first tick."""
        return float(self.ticks[0]["at"]) - min(record.sent for record in self.records)


def serve(folder: Path, server: Sequence[str], loads: Mapping[str, Sequence[str]]) -> dict[str, Served]:
    """Start a server, send it one load after another, stop it. Results that the folder already has are only read.

    Args:
        folder: existing folder for the server's trace, the probes, and the results of each load.
        server: options of `medha-jax serve`.
        loads: options of `medha-jax bench serve` for each load, by name.

    Raises:
        ServerStartError: the server did not start.
        CalledProcessError: a load failed.
    """
    if not (folder / TRACE).exists():
        _measure(folder, server, loads)
    ticks = served_ticks(folder / TRACE, since=WARMUP)
    found: dict[str, Served] = {}
    for name, (began, ended) in json.loads((folder / TIMES).read_text(encoding="utf-8")).items():
        (repeat,) = read_run(folder / name).repeats
        found[name] = Served(repeat.records, [tick for tick in ticks if began <= tick["at"] < ended])
    return found


def _measure(folder: Path, server: Sequence[str], loads: Mapping[str, Sequence[str]]) -> None:
    """Measure; the trace is written last, so that it marks complete results."""
    unfinished, cores = folder / "unfinished.json", sorted(os.sched_getaffinity(0))
    times: dict[str, tuple[float, float]] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(probed(cores[0], folder / PROBES))
        with on_cores(*cores[:-1] or cores):
            own = stack.enter_context(OwnServer([*server, f"--trace={unfinished}"], _tell))
        for name, asked in loads.items():
            warmup = 0 if times else WARMUP
            command = [*BENCH, f"--server={own.address}", f"--warmup={warmup}", f"--out={folder / name}", *asked]
            began = time.perf_counter()
            with on_cores(cores[-1]):
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name] = began, time.perf_counter()
    (folder / TIMES).write_text(json.dumps(times) + "\n", encoding="utf-8")
    unfinished.rename(folder / TRACE)


@contextmanager
def on_cores(*cores: int) -> Iterator[None]:
    """Within the block, this process and its new children run on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def write_calibration_requests(path: Path, longest: int, skip: int = 0) -> None:
    """Write requests of all lengths for a calibration, as a Mooncake trace (JSON lines). The client sets the arrivals.

    Prompt lengths are log-uniform up to a quarter of `longest`; every 25th prompt has `longest` tokens. Outputs have
    2 to 64 tokens. The first `skip` requests are left out.
    """
    draw, count = np.random.default_rng(1), 10_000
    prompts = np.rint(np.exp(draw.uniform(np.log(2), np.log(longest / 4), count))).astype(int)
    prompts[10::25] = longest
    outputs = draw.integers(2, 65, count)
    rows = zip(prompts.tolist(), outputs.tolist(), strict=True)
    lines = [json.dumps({"timestamp": 0, "input_length": one, "output_length": other}) for one, other in rows][skip:]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
