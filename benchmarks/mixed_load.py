"""All that clients do to a server, good and bad, in random order, reproducible from a seed.

Good requests must end with all their tokens. The others leave, come in parts and go, end at a deadline, are aborted,
or are malformed: each may end in any way, but must leave nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

from grpc import aio

from benchmarks.fuzz import status_of
from benchmarks.fuzz_messages import malformed
from medha_jax.client import AsyncClient, Delta, ServerError
from medha_jax.client.connection import SERVICE, Connection
from medha_jax.protos import inference_pb2 as pb

LAST_ID = 320  # ids below it are in every vocabulary, also that of small test models
GOOD = ("short", "long", "several")
WEIGHTS = {"short": 30, "long": 4, "several": 6, "leave": 25, "parts": 8, "deadline": 10, "abort": 7, "malformed": 10}
KILLED = """
import sys, itertools
from medha_jax.client import Client
client = Client(sys.argv[1])
streams = [client.generate([5, 6, 7], max_tokens=200, ignore_eos=True) for _ in range(4)]
for stream in streams:
    next(stream)
print(flush=True)
for stream in itertools.cycle(streams):
    next(stream, None)
"""


class MixedLoad:
    """Sends requests to a server from several tasks, each one after the other; owns what they count.

    Args:
        address: HOST:PORT.
        context: most tokens of a request.
        seed: of everything that is drawn.
        kinds: of WEIGHTS, and `kill` for clients in processes that are killed.
    """

    def __init__(self, address: str, context: int, seed: int, kinds: Sequence[str] = (*WEIGHTS, "kill")) -> None:
        self._address, self._context, self._kinds = address, context, kinds
        self._draw = random.Random(seed)
        self.done = Counter[str]()  # requests by kind
        self.failed: list[str] = []  # good requests that did not end well, in words
        self._stopped = False

    def stop(self) -> None:
        """Send nothing more; what runs then ends."""
        self._stopped = True

    async def run(self, tasks: int, requests: float, seconds: float) -> None:
        """Send until either bound is reached or `stop` is called; what runs then ends."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds

        def goes_on() -> bool:
            return loop.time() < end and self.done.total() < requests and not self._stopped

        weighted = [kind for kind in self._kinds if kind in WEIGHTS]

        async def sender() -> None:
            while goes_on():
                kind = self._draw.choices(weighted, [WEIGHTS[kind] for kind in weighted])[0]
                self.done[kind] += 1
                await self._one(kind, client, channel)

        async def killer() -> None:
            while goes_on():
                self.done["kill"] += 4
                await self._kill()

        async with AsyncClient(self._address) as client, Connection(self._address).aio_channel() as channel:
            senders = [sender() for _ in range(tasks)] if weighted else []
            await asyncio.gather(*senders, *([killer()] if "kill" in self._kinds else []))

    async def _one(self, kind: str, client: AsyncClient, channel: aio.Channel) -> None:
        """One request of a kind."""
        try:
            if kind in GOOD:
                await self._good(kind, client)
            elif kind == "leave":
                await self._leave(client)
            elif kind == "parts":
                await self._parts(channel)
            elif kind == "deadline":
                await self._read(client, self._ids(200), timeout=self._draw.uniform(0.001, 0.5), on_deadline="drop")
            elif kind == "abort":
                await self._abort(client)
            else:
                method, sent = malformed(self._draw)
                await status_of(channel, method, sent)
        except ServerError as error:
            # a malformed Abort may meet any request; a full queue is an answer
            if kind in GOOD and error.code not in ("CANCELLED", "RESOURCE_EXHAUSTED"):
                self.failed.append(f"{kind}: {error.code}: {error}")

    async def _good(self, kind: str, client: AsyncClient) -> None:
        draw = self._draw
        settings: dict[str, Any] = {"max_tokens": draw.randrange(1, 60)}
        prompt = self._ids(200 if kind != "long" else self._context - 80)
        if kind == "several":
            settings |= {"n": draw.randrange(2, 5), "temperature": 1.0, "logprobs": 5}
        tokens = await self._read(client, prompt, **settings)
        wanted = settings["max_tokens"] * settings.get("n", 1)
        if tokens != wanted:
            self.failed.append(f"{kind}: {tokens} of {wanted} tokens")

    async def _read(self, client: AsyncClient, prompt: list[int], **settings: Any) -> int:
        """Read a stream to its end; returns its output tokens."""
        tokens = 0
        settings = {"max_tokens": 20} | settings
        async for event in client.generate(prompt, ignore_eos=True, **settings):
            tokens += len(event.token_ids) if isinstance(event, Delta) else 0
        return tokens

    async def _leave(self, client: AsyncClient) -> None:
        """Leave a stream after a random time: before anything came, or in the middle."""
        with contextlib.suppress(TimeoutError):
            reading = self._read(client, self._ids(400), max_tokens=200)
            await asyncio.wait_for(reading, self._draw.choice((0.0, 0.002, 0.02, 0.2, 1.0)) * self._draw.random())

    async def _parts(self, channel: aio.Channel) -> None:
        """A prompt in parts with pauses, of which half never get to their end."""
        draw = self._draw
        complete = draw.random() < 0.5

        async def parts() -> AsyncIterator[pb.GeneratePart]:
            sizes = [draw.randrange(1, 100) for _ in range(draw.randrange(1, 5))]
            start = pb.GenerateStart(prompt_tokens=sum(sizes) if complete else sum(sizes) + 100)
            start.settings.sampling.max_tokens = 5
            yield pb.GeneratePart(start=start)
            for size in sizes:
                await asyncio.sleep(draw.random() * 0.2)
                yield pb.GeneratePart(token_ids=pb.PromptIds(ids=self._ids(size)))
            if not complete:
                await asyncio.sleep(draw.random())
                call.cancel()

        method = channel.stream_stream(
            SERVICE + "GenerateStream", pb.GeneratePart.SerializeToString, pb.GenerateEvent.FromString
        )
        call = method(parts(), timeout=60)
        with contextlib.suppress(aio.AioRpcError, asyncio.CancelledError):
            async for _ in call:
                pass

    async def _abort(self, client: AsyncClient) -> None:
        """End a request by its name, from another call."""
        name = f"soak-{self._draw.getrandbits(60)}"
        reading = asyncio.create_task(self._read(client, self._ids(100), max_tokens=200, request_id=name))
        await asyncio.sleep(self._draw.random() * 0.3)
        try:
            await client.abort(name)
        finally:
            with contextlib.suppress(ServerError):
                await reading

    async def _kill(self) -> None:
        """Kill a client in the middle of four streams."""
        command = [sys.executable, "-c", KILLED, self._address]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        await process.stdout.readline()
        await asyncio.sleep(self._draw.random())
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()

    def _ids(self, most: int) -> list[int]:
        return [self._draw.randrange(3, LAST_ID) for _ in range(self._draw.randrange(1, most))]
