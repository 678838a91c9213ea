"""Hours of mixed load on a real server: what grows, and what is left behind.

    python -m benchmarks.soak --hours 4
    python -m benchmarks.soak --requests 10000 --kinds leave kill
    python -m benchmarks.soak --model /models/llama

Serves the bundled model, or another one, in a process of its own, sends it `benchmarks.mixed_load`, and prints its
memory, descriptors, threads, requests and pages over time. Now and then it asks the server to read its certificates and
tokens again. At the end, or at SIGTERM, the load stops; everything must be free again, and memory must not have grown
by more than 1 MB an hour. Descriptors and threads that came meanwhile are listed by what they are.

The slope is that of a straight line through the samples after the warm-up (least squares); its error is the standard
error of such a slope. It needs hours: of a few minutes, the error is far larger than 1 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.fuzz import held
from benchmarks.mixed_load import WEIGHTS, MixedLoad
from benchmarks.server import serving
from medha_jax.client import AsyncClient, LoadInfo

CONTEXT = 4096
SERVE = ("serve", "--port", "0", "--access-log", "off", "--compile-all-first", "--max-output", "256")
IDLE_SECONDS = 60.0
MOST_SLOPE = 1.0  # MB an hour
SURE = 2.0  # standard errors: of a few minutes, the slope says nothing
SPARE = 8  # descriptors and threads: connections that just closed, threads of pools that had not started


@dataclass(frozen=True)
class Sample:
    """A server at one moment: seconds since the start, MiB of memory, and counts."""

    seconds: float
    memory: float
    descriptors: int
    threads: int
    load: LoadInfo

    @property
    def held_pages(self) -> int:
        """KV pages that are not free."""
        return sum(pool.total_pages - pool.free_pages for pool in self.load.pools)

    @property
    def idle(self) -> bool:
        """Whether it has no request, no slot and no page."""
        load = self.load
        return not (load.running or load.waiting or load.waiting_tokens or load.used_slots or self.held_pages)


def take(pid: int, load: LoadInfo, began: float) -> Sample:
    """A sample now of a process that serves."""
    return Sample(time.monotonic() - began, *held(pid), load)


def kinds_held(pid: int) -> Counter[str]:
    """Descriptors and threads of a process by kind: where a descriptor leads, or a thread's name, without numbers."""
    held = Counter[str]()
    for name, what in (("fd", os.readlink), ("task", lambda task: Path(task, "comm").read_text().strip())):
        for entry in Path(f"/proc/{pid}/{name}").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it was closed, or has ended
                held[f"{name} {re.sub(r'[0-9]+', '', what(entry))}"] += 1
    return held


def slope(hours: Sequence[float], memory: Sequence[float]) -> tuple[float, float]:
    """Growth an hour by least squares, and its standard error; NaN for fewer than three samples."""
    if len(hours) < 3:
        return math.nan, math.nan
    x, y = np.asarray(hours) - np.mean(hours), np.asarray(memory)
    growth = float(x @ y / (x @ x))
    rest = y - y.mean() - growth * x
    return growth, float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x)))


def faults(before: Sample, after: Sample, failed: Sequence[str]) -> list[str]:
    """What a server that is idle again has kept, and which good requests failed; in words."""
    found = [] if after.idle else [f"not idle: {after.load}, {after.held_pages} pages held"]
    for name in ("descriptors", "threads"):
        was, now = getattr(before, name), getattr(after, name)
        if now > was + SPARE:
            found.append(f"{name}: {was} before, {now} after")
    if failed:
        found.append(f"{len(failed)} good requests failed, such as {failed[0]}")
    return found


async def watched(
    load: MixedLoad, address: str, pid: int, *, tasks: int, requests: float, seconds: float, every: float, reload: bool
) -> tuple[list[Sample], Sample, Sample]:
    """Send a load; returns the samples while it ran, and those of the idle server before and after."""
    began = time.monotonic()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, load.stop)
    async with AsyncClient(address) as client:

        async def idle() -> Sample:
            end = time.monotonic() + IDLE_SECONDS
            while not (sample := take(pid, await client.load(), began)).idle and time.monotonic() < end:
                await asyncio.sleep(0.01)
            return sample

        before, samples = await idle(), list[Sample]()
        sending = asyncio.create_task(load.run(tasks, requests, seconds))
        while not (await asyncio.wait([sending], timeout=every))[0]:
            samples.append(take(pid, await client.load(), began))
            print(_row(samples[-1], load.done.total()), flush=True)
            if reload:
                os.kill(pid, signal.SIGHUP)
        await sending
        ended, after = time.monotonic() - began, await idle()
        print(f"idle {max(after.seconds - ended, 0):.2f} s after the last request", flush=True)
        return samples, before, after


def _row(sample: Sample, requests: int) -> str:
    load = sample.load
    return (
        f"{sample.seconds / 60:7.1f} min {requests:9,} requests {sample.memory:8.1f} MiB {sample.descriptors:4d} "
        f"descriptors {sample.threads:4d} threads {load.running:3d} running {load.waiting:3d} waiting "
        f"{sample.held_pages:5d} pages"
    )


def main() -> int:
    """Serve, load, watch; returns 1 if anything was left behind or grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="the bundled one, or a directory")
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--requests", type=float, default=math.inf, help="end after so many, if they come first")
    parser.add_argument("--kinds", nargs="+", choices=(*WEIGHTS, "kill"), default=(*WEIGHTS, "kill"))
    parser.add_argument("--tasks", type=int, default=12, help="requests at a time")
    parser.add_argument("--every", type=float, default=60.0, metavar="SECONDS", help="between two samples")
    parser.add_argument("--warm-up", type=float, default=15.0, metavar="MINUTES", help="that the slope leaves out")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    serve = (*SERVE, "--model", given.model, "--max-context", str(CONTEXT))
    with serving("medha_jax.cli", *serve) as (address, pid):
        print(f"{Path(f'/proc/{pid}/cmdline').read_text().replace(chr(0), ' ')}at {address}, seed {given.seed}")
        load = MixedLoad(address, CONTEXT, given.seed, given.kinds)
        asyncio.run(load.run(given.tasks, 200, 120.0))  # pools and caches fill; what follows is compared with this
        bounds = dict(tasks=given.tasks, requests=given.requests, seconds=given.hours * 3600, every=given.every)
        had = kinds_held(pid)
        samples, before, after = asyncio.run(watched(load, address, pid, **bounds, reload=True))
        came = kinds_held(pid) - had
    kept = [sample for sample in samples if sample.seconds >= given.warm_up * 60]
    growth, error = slope([sample.seconds / 3600 for sample in kept], [1.048576 * sample.memory for sample in kept])
    print(", ".join(f"{kind} {count:,}" for kind, count in load.done.most_common()))
    print(f"idle before: {_row(before, 0)}\nidle after:  {_row(after, load.done.total())}")
    print("came meanwhile: " + (", ".join(f"{count} {kind}" for kind, count in sorted(came.items())) or "nothing"))
    print(f"memory grows by {growth:.2f} MB an hour (standard error {error:.2f}, {len(kept)} samples)")
    found = faults(before, after, load.failed)
    if growth - SURE * error > MOST_SLOPE:
        found.append(f"memory grows by more than {MOST_SLOPE} MB an hour")
    print("\n".join(found) or "nothing was left behind")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
