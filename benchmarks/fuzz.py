"""Send malformed messages, broken HTTP/2 and malformed HTTP to a server, from a seed, and watch its memory.

medha-jax serve --mesh cpu-small --max-context 4096 --max-output 4 --access-log off --port 9320 --http-port 8000
python -m benchmarks.fuzz 127.0.0.1:9320 --http http://127.0.0.1:8000 --messages 100000 --pid PID
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from grpc import aio

from benchmarks.fuzz_frames import attack_frames
from benchmarks.fuzz_http import attack_http
from benchmarks.fuzz_messages import malformed
from medha_jax.client.connection import SERVICE, Connection

AT_ONCE = 32
CALL_SECONDS = 30.0


def attack(address: str, messages: int, seed: int) -> Counter[str]:
    """Make `messages` calls; returns the count of each status."""
    return asyncio.run(_attack(address, messages, seed))


async def _attack(address: str, messages: int, seed: int) -> Counter[str]:
    draw, codes = random.Random(seed), Counter[str]()
    left = messages

    async def caller(channel: aio.Channel) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            method, sent = malformed(draw)
            codes[await status_of(channel, method, sent)] += 1

    async with Connection(address).aio_channel() as channel:
        await asyncio.gather(*(caller(channel) for _ in range(AT_ONCE)))
    return codes


async def status_of(channel: aio.Channel, method: str, sent: list[bytes]) -> str:
    """The status of one call with messages as they are."""
    methods: Any = channel  # bytes go as they are, and the stubs know messages only
    if method == "GenerateStream":
        call = methods.stream_stream(SERVICE + method)(iter(sent), timeout=CALL_SECONDS)
    else:
        call = methods.unary_stream(SERVICE + method)(sent[0], timeout=CALL_SECONDS)
    try:
        async for _ in call:
            pass
    except asyncio.CancelledError:
        return "CANCELLED"  # grpc.aio raises this for the status
    except aio.AioRpcError as error:
        # grpc.aio's message if the server ends a stream while parts are being sent
        return "ENDED_EARLY" if error.details() == "Internal error from Core" else error.code().name
    return "OK"


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held(pid: int) -> tuple[float, int, int]:
    """MiB of memory, descriptors and threads of a process."""
    files, threads = (len(list(Path(f"/proc/{pid}/{folder}").iterdir())) for folder in ("fd", "task"))
    return resident_bytes(pid) / 2**20, files, threads


def main() -> None:
    """Attack in ten parts, and print the memory after each.

    For 200 messages there is a connection of broken frames, and for ten an HTTP request if a URL is given.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--http", metavar="URL", help="of the server's OpenAI API, without /v1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pid", type=int, help="of the server, to see its memory")
    given = parser.parse_args()
    codes, statuses, began = Counter[str](), Counter[str](), time.monotonic()
    for part in range(10):
        codes += attack(given.address, given.messages // 10, given.seed + part)
        attack_frames(given.address, given.messages // 2000, given.seed + part)
        if given.http is not None:
            statuses += attack_http(given.http, given.messages // 100, given.seed + part)
        memory = "" if given.pid is None else f", server holds {resident_bytes(given.pid) / 2**20:.1f} MiB"
        print(f"{sum(codes.values()):,} messages in {time.monotonic() - began:.0f} s{memory}", flush=True)
    print(", ".join(f"{code} {count:,}" for code, count in codes.most_common()))
    if given.http is not None:
        print("HTTP: " + ", ".join(f"{status} {count:,}" for status, count in statuses.most_common()))


if __name__ == "__main__":
    main()
