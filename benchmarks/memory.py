"""Output of a server whose pool is small, with pages as tokens come and with pages reserved for all output.

    python -m benchmarks.memory --growth-pages 1 --growth-pages 4

Requests state `max_tokens` = 2,048 and want fewer: 64 and more, a quarter of it on average. They come all at once, and
each ends when its client has what it wants. The pool holds a share of what the slots would reserve. One server a row,
each with the same requests. With few requests, the end, when the last long answers run alone, is most of what is
measured. It prints output tokens a second, preemptions, and the tokens whose KV they lost.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from benchmarks.measure import machine
from medha_jax.client import AsyncClient, Delta

LEAST, MOST, MEAN = 64, 2048, 512
PROMPT = 128
VOCABULARY = 2048


def main() -> None:
    """Measure reserving, then each number of pages kept for growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.3, help="of what all slots would reserve")
    parser.add_argument("--growth-pages", type=int, action="append", default=[])
    parser.add_argument("--policy", default="red")
    given = parser.parse_args()
    outputs = wanted(given.requests)
    pool = int(given.share * given.slots * (PROMPT + MOST))
    print(f"{machine()}; {len(outputs)} requests want {np.mean(outputs):.0f} tokens on average; pool {pool} tokens")
    server = ["--slots", str(given.slots), "--pool-tokens", str(pool), "--policy", given.policy]
    rows = {"reserved": ["--reserve-output"]}
    rows |= {f"{pages} pages to grow": ["--growth-pages", str(pages)] for pages in given.growth_pages or [1]}
    for name, options in rows.items():
        with serving([*server, *options]) as (address, metrics):
            seconds = asyncio.run(run(address, outputs))
            lost = counted(metrics, "num_preemptions"), counted(metrics, "preempted_tokens")
        print(
            f"{name:>18}: {sum(outputs) / seconds:6.1f} tokens/s, {seconds:.1f} s, {lost[0]:.0f} preemptions, "
            f"{lost[1]:.0f} tokens lost",
            flush=True,
        )


def wanted(count: int) -> list[int]:
    """Output tokens of each request."""
    draw = np.random.default_rng(0).exponential(MEAN - LEAST, count)
    return np.clip(LEAST + draw, LEAST, MOST).astype(int).tolist()


async def run(address: str, outputs: Sequence[int]) -> float:
    """Send all requests; returns the seconds until the last one has its tokens."""
    async with AsyncClient(address) as client:

        async def one(number: int, tokens: int) -> None:
            prompt = np.random.default_rng(number).integers(5, VOCABULARY, PROMPT).tolist()
            got = 0
            events = client.generate(prompt, max_tokens=MOST, temperature=0, ignore_eos=True)
            async for event in events:
                if isinstance(event, Delta):
                    got += len(event.token_ids)
                if got >= tokens:
                    break
            await events.aclose()

        began = time.perf_counter()
        await asyncio.gather(*(one(number, tokens) for number, tokens in enumerate(outputs)))
        return time.perf_counter() - began


@contextmanager
def serving(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A server of the bundled model; yields its address, and that of its metrics."""
    command = [sys.executable, "-m", "medha_jax.cli", "serve", "--port", "0", "--metrics-port", "0"]
    with (
        tempfile.TemporaryFile("w+") as told,
        subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=told, text=True) as server,
    ):
        assert server.stdout is not None
        address = re.search(r"\S+:\d+", server.stdout.readline())
        told.seek(0)
        metrics = re.search(r"metrics on (\S+)", told.read())
        assert address is not None and metrics is not None, "the server did not start"
        yield address.group(), metrics.group(1)
        server.terminate()
        server.wait(60)


def counted(metrics: str, name: str) -> float:
    """The value of a counter."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(metrics) as reply:
        found = re.search(rf"^medha_{name}_total (\S+)$", reply.read().decode(), re.M)
    return float(found.group(1)) if found else 0.0


if __name__ == "__main__":
    main()
