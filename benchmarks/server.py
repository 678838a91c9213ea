"""The cost of serving: tokens per second over many streams, with a simulated mesh.

    python -m benchmarks.server --streams 200

One process serves, another reads all streams at once. Tokens per second = output tokens of all streams / (end - first
request). TPOT of a stream = (last delta - first delta) / (tokens - 1), as the client sees it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from medha_jax.client import AsyncClient, Delta

STOP_SECONDS = 30


async def read(client: AsyncClient, tokens: int) -> tuple[int, int, float]:
    """Read one stream to its end; returns tokens, messages, seconds per token after the first."""
    count = messages = 0
    first = last = 0.0
    async for event in client.generate([5, 6, 7], max_tokens=tokens, ignore_eos=True):
        if isinstance(event, Delta):
            last = time.perf_counter()
            first = first or last
            count += len(event.token_ids)
            messages += 1
    return count, messages, (last - first) / max(count - 1, 1)


async def measure(address: str, streams: int, tokens: int) -> tuple[float, int, int, list[float]]:
    """Read all streams at once; returns seconds, tokens, messages, and every stream's TPOT in seconds."""
    async with AsyncClient(address) as client:
        await asyncio.gather(*(read(client, 4) for _ in range(streams)))  # warms connections and caches
        began = time.perf_counter()
        done = await asyncio.gather(*(read(client, tokens) for _ in range(streams)))
        seconds = time.perf_counter() - began
    counts, messages, tpots = zip(*done, strict=True)
    return seconds, sum(counts), sum(messages), list(tpots)


def main() -> None:
    """Start a server, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=300, help="of each stream")
    parser.add_argument("--tick-ms", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    options = ("--tick-ms", str(given.tick_ms), "--slots", str(given.streams))
    with serving("benchmarks.simulated_server", *options) as (address, pid):
        for _ in range(given.runs):
            before = cpu_seconds(pid)
            seconds, tokens, messages, tpots = asyncio.run(measure(address, given.streams, given.tokens))
            print(
                f"{given.streams} streams, {tokens:,} tokens in {seconds:.2f} s: {tokens / seconds:,.0f} tokens/s in "
                f"{messages / seconds:,.0f} messages/s; TPOT P50 {1000 * statistics.median(tpots):.1f} ms, "
                f"most {1000 * max(tpots):.1f} ms; the server used {cpu_seconds(pid) - before:.2f} s of CPU",
                flush=True,
            )


@contextmanager
def serving(module: str, *options: str) -> Iterator[tuple[str, int]]:
    """Run a module that serves in a child process; yields its address and process id, and stops it at the end."""
    with subprocess.Popen([sys.executable, "-m", module, *options], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1], server.pid
        server.send_signal(signal.SIGTERM)
        server.wait(STOP_SECONDS)


def cpu_seconds(pid: int) -> float:
    """User and system seconds of a process."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
