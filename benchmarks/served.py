"""A real run for the simulator to be compared with: `medha-jax serve`, and `medha-jax bench serve` that loads it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
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
WARMUP = 4  # requests before each run, which are no part of it
TRACE, PROBES = "trace.json", "probes.txt"


@dataclass(frozen=True)
class Served:
    """A run that was measured: its requests, by index, and its ticks in the form of a calibration's."""

    records: tuple[RequestRecord, ...]
    ticks: list[dict[str, Any]]

    @property
    def began(self) -> float:
        """When the records' times begin, in seconds of the ticks' clock: the first tick is when the first was sent."""
        return float(self.ticks[0]["at"]) - min(record.sent for record in self.records)


def serve(folder: Path, server: Sequence[str], asked: Sequence[str]) -> Served:
    """Start a server, send it a workload, stop it; what is in the folder already is read and not measured again.

    Args:
        folder: where the results and the server's trace go.
        server: options of `medha-jax serve`.
        asked: options of `medha-jax bench serve`: the workload.

    Raises:
        ServerStartError: the server did not start.
        CalledProcessError: the load was not sent.
    """
    if not (folder / TRACE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished, cores = folder / "unfinished.json", sorted(os.sched_getaffinity(0))
        with contextlib.ExitStack() as stack:
            stack.enter_context(probed(cores[0], folder / PROBES))
            with on_cores(*cores[:-1] or cores):
                own = stack.enter_context(OwnServer([*server, f"--trace={unfinished}"], _tell))
            command = [*BENCH, f"--server={own.address}", f"--warmup={WARMUP}", f"--out={folder}", *asked]
            with on_cores(cores[-1]):
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        unfinished.rename(folder / TRACE)
    (repeat,) = read_run(folder).repeats
    return Served(repeat.records, served_ticks(folder / TRACE, since=WARMUP))


@contextmanager
def on_cores(*cores: int) -> Iterator[None]:
    """Within the block, this process and those that it starts have these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def write_calibration_requests(path: Path, count: int, longest: int, seed: int) -> None:
    """Requests of all lengths for a calibration, as a Mooncake trace (JSON lines); they arrive when the client says.

    Prompts are uniform in their logarithm up to a quarter of the longest, and every 25th is that long; outputs have
    2 to 64 tokens.
    """
    draw = np.random.default_rng(seed)
    prompts = np.rint(np.exp(draw.uniform(np.log(2), np.log(longest / 4), count))).astype(int)
    prompts[10::25] = longest
    outputs = draw.integers(2, 65, count)
    rows = zip(prompts.tolist(), outputs.tolist(), strict=True)
    lines = [json.dumps({"timestamp": 0, "input_length": one, "output_length": other}) for one, other in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
