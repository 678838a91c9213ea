"""Ten times as many requests as a server can do: how fast it refuses, and what the accepted ones get.

    python -m benchmarks.overload

The server has a simulated mesh, so its capacity is known: slots / (output tokens x tick) requests a second. First as
many clients as slots send one request after the other; then requests come at ten times the capacity, whatever the
server answers. Goodput = output tokens of requests that ended well, a second, between the first third and the end.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from dataclasses import dataclass, field

from benchmarks.server import serving
from medha_jax.client import AsyncClient, Delta, ServerError

TOKENS = 32  # of each output
PROMPT = [5, 6, 7, 8]


@dataclass
class Answers:
    """What clients got: times of tokens, seconds until refusals, refusals that say when to come again, other errors."""

    tokens: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    with_retry: int = 0
    other: list[str] = field(default_factory=list)

    def rate(self, since: float, until: float) -> float:
        """Output tokens a second of requests that ended well."""
        return sum(since <= at < until for at in self.tokens) / (until - since)


async def one(client: AsyncClient, answers: Answers) -> None:
    """Send a request and note what came."""
    began, got = time.perf_counter(), list[float]()
    try:
        async for event in client.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True):
            if isinstance(event, Delta):
                got += [time.perf_counter()] * len(event.token_ids)
        answers.tokens += got
    except ServerError as error:
        if error.code == "RESOURCE_EXHAUSTED":
            answers.refusals.append(time.perf_counter() - began)
            answers.with_retry += error.retry_s is not None
        else:
            answers.other.append(f"{error.code}: {error}")


async def unloaded(address: str, slots: int, seconds: float) -> tuple[float, Answers]:
    """As many clients as slots; returns the goodput."""
    answers, began = Answers(), time.perf_counter()

    async def caller(client: AsyncClient) -> None:
        while time.perf_counter() < began + seconds:
            await one(client, answers)

    async with AsyncClient(address) as client:
        await asyncio.gather(*(caller(client) for _ in range(slots)))
    return answers.rate(began + seconds / 3, began + seconds), answers


async def overloaded(address: str, rate: float, seconds: float) -> tuple[float, Answers]:
    """Requests at a rate, whatever the server answers; returns the goodput."""
    answers, began, tasks = Answers(), time.perf_counter(), list[asyncio.Task[None]]()
    async with AsyncClient(address) as client:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0))
            tasks.append(asyncio.create_task(one(client, answers)))
        ended = time.perf_counter()
        await asyncio.gather(*tasks)
    return answers.rate(began + (ended - began) / 3, ended), answers


def main() -> None:
    """Measure both, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--queue", type=int, default=32)
    parser.add_argument("--tick-ms", type=float, default=25.0)
    parser.add_argument("--times", type=float, default=10.0, help="as many requests as it can do")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each part")
    given = parser.parse_args()
    capacity = given.slots / (TOKENS * given.tick_ms / 1000)
    options = ("--slots", given.slots, "--max-queue", given.queue, "--tick-ms", given.tick_ms)
    with serving("benchmarks.simulated_server", *map(str, options)) as (address, _):
        alone, _ = asyncio.run(unloaded(address, given.slots, given.seconds))
        under, answers = asyncio.run(overloaded(address, given.times * capacity, given.seconds))
    refused = sorted(answers.refusals)
    print(f"capacity {capacity:.0f} requests/s; {given.slots} clients: {alone:.0f} tokens/s")
    print(f"{given.times:g} times the capacity: {under:.0f} tokens/s, {under / alone:.3f} of that")
    print(
        f"{len(refused):,} refusals: P50 {1000 * statistics.median(refused):.1f} ms, P99 "
        f"{1000 * refused[int(0.99 * len(refused))]:.1f} ms, most {1000 * refused[-1]:.1f} ms; "
        f"{answers.with_retry:,} say when to come again; {len(answers.other)} other errors"
    )


if __name__ == "__main__":
    main()
