"""The cost of serving: tokens per second over many streams, with a simulated mesh, over gRPC and over HTTP in turns.

    python -m benchmarks.server --streams 200

One process serves, another reads all streams at once. Over HTTP it reads server-sent events of `/v1/completions` and
counts the ids in them. Tokens per second = output tokens of all streams / (end - first
request). TPOT of a stream = (last delta - first delta) / (tokens - 1), as the client sees it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import aiohttp

from medha_jax.client import AsyncClient, Delta

STOP_SECONDS = 30
Reader = Callable[[int], Awaitable[tuple[int, int, float]]]  # reads a stream of so many tokens


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


async def read_http(client: aiohttp.ClientSession, url: str, tokens: int) -> tuple[int, int, float]:
    """The same over HTTP."""
    count = messages = 0
    first = last = 0.0
    body = {"prompt": [5, 6, 7], "max_tokens": tokens, "ignore_eos": True, "stream": True, "return_token_ids": True}
    async with client.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b'data: {"id"'):
                last = time.perf_counter()
                first = first or last
                count += len(json.loads(line[6:])["choices"][0]["token_ids"])
                messages += 1
    return count, messages, (last - first) / max(count - 1, 1)


async def measure(read_one: Reader, streams: int, tokens: int) -> tuple[float, int, int, list[float]]:
    """Read all streams at once; returns seconds, tokens, messages, and every stream's TPOT in seconds."""
    await asyncio.gather(*(read_one(4) for _ in range(streams)))  # warms connections and caches
    began = time.perf_counter()
    done = await asyncio.gather(*(read_one(tokens) for _ in range(streams)))
    seconds = time.perf_counter() - began
    counts, messages, tpots = zip(*done, strict=True)
    return seconds, sum(counts), sum(messages), list(tpots)


async def measure_grpc(address: str, streams: int, tokens: int) -> tuple[float, int, int, list[float]]:
    """`measure` over gRPC."""
    async with AsyncClient(address) as client:
        return await measure(partial(read, client), streams, tokens)


async def measure_http(url: str, streams: int, tokens: int) -> tuple[float, int, int, list[float]]:
    """`measure` over HTTP."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        return await measure(partial(read_http, client, url), streams, tokens)


def main() -> None:
    """Start a server, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=300, help="of each stream")
    parser.add_argument("--tick-ms", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    http = free_port()
    options = ("--tick-ms", str(given.tick_ms), "--slots", str(given.streams), "--http-port", str(http))
    with serving("benchmarks.simulated_server", *options) as (address, pid):
        ways = {"gRPC": partial(measure_grpc, address), "HTTP": partial(measure_http, f"http://127.0.0.1:{http}")}
        for name, measured in list(ways.items()) * given.runs:
            before = cpu_seconds(pid)
            seconds, tokens, messages, tpots = asyncio.run(measured(given.streams, given.tokens))
            print(
                f"{name}: {given.streams} streams, {tokens:,} tokens in {seconds:.2f} s: "
                f"{tokens / seconds:,.0f} tokens/s in {messages / seconds:,.0f} messages/s; "
                f"TPOT P50 {1000 * statistics.median(tpots):.1f} ms, most {1000 * max(tpots):.1f} ms; "
                f"the server used {cpu_seconds(pid) - before:.2f} s of CPU",
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


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """User and system seconds of a process."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
