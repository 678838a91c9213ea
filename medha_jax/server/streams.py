"""Open streams carry events from the engine's thread to the coroutine that writes them to a client."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import count
from operator import itemgetter

from grpc import StatusCode

from medha_jax.engine import Completed, EngineEvent, Failed, NewTokens, Prefilled, PromptScored, Queued
from medha_jax.server.refusal import Refusal, too_busy, too_slow
from medha_jax.server.settings import Limits
from medha_jax.server.unread import Kept, event_bytes
from medha_jax.server.write_limit import WriteLimit
from medha_jax.tenants import TenantCounts

MOST_JOINED = 256  # deltas in one message
LAST_SECONDS = 0.5  # of the current write of a stream that was ended
MOST_ECHOED = 2**16  # characters of a prompt in one message
MOST_JOINED_BYTES = 2**18  # of deltas in one message, as they are counted while they wait
PROGRESS_SECONDS = 1.0  # at least, between two events about the prompt
Item = Queued | Prefilled | PromptScored | list[NewTokens] | Completed | Failed


class Stream:
    """The events that wait to be written to one client. Belongs to the event loop.

    Waiting deltas of an output are written together. The engine never waits for a reader. `count` is told every change
    of `unread`.
    With `progress` events about the prompt are written too, at most one in `PROGRESS_SECONDS`.

    Attributes:
        tenant: whose it is.
        number: the engine's number of the request, once it has one.
        outputs: of the request; the engine's numbers of them follow each other.
        index: output whose event was taken last.
        over: whether the coroutine has taken the engine's last event.
        unread: bytes of its events that are not written yet, those of the current write included.
    """

    def __init__(
        self, tenant: str, request_id: str, write_seconds: float, count: Callable[[int], None], progress: bool = False
    ) -> None:
        self.tenant, self.request_id = tenant, request_id
        self.number: int | None = None
        self.outputs = 1
        self.index = 0
        self.over = False
        self.unread = 0
        self._seconds, self._count = write_seconds, count
        self._waiting: deque[tuple[Kept, int, int]] = deque()  # events, their bytes, the index of their output
        self._echo: tuple[NewTokens, ...] = ()
        self._echoed: dict[int, int] = {}  # pieces of the echo that each output has had
        self._writing = 0  # bytes of the events that were taken last
        self._some = asyncio.Event()
        self._next_progress = -math.inf if progress else math.inf
        self._ended: Refusal | None = None
        self._limit = WriteLimit()

    @property
    def numbers(self) -> range:
        """The engine's numbers of the outputs."""
        return range(0) if self.number is None else range(self.number, self.number + self.outputs)

    @property
    def more(self) -> bool:
        """Whether an event waits."""
        return bool(self._waiting)

    def put(self, event: Kept, index: int = 0) -> None:
        """Add an event of an output; a stream that was ended drops it. It begins once, with the first output."""
        if self._ended is not None or (index and isinstance(event, Queued)):
            return
        if isinstance(event, Prefilled):
            now = asyncio.get_running_loop().time()
            if now < self._next_progress or event.done >= event.total:  # the first token comes next
                return
            self._next_progress = now + PROGRESS_SECONDS
        if isinstance(event, Completed):  # its text was in the deltas, and no reply repeats it
            event = replace(event, completion=replace(event.completion, text="", logprobs=()))
        size = event_bytes(event)
        self._waiting.append((event, size, index))
        self._change(size)
        self._some.set()

    def echo(self, text: str) -> None:
        """Let a prompt's text come before the first token of each output.

        It does not count as unread: it is no more than its client sent, and each write of it has a limit of time.
        """
        pieces = (text[start : start + MOST_ECHOED] for start in range(0, len(text), MOST_ECHOED))
        self._echo = tuple(NewTokens((), piece) for piece in pieces)

    def end(self, refusal: Refusal) -> None:
        """End the stream with a status, and drop what waits. Only the first call counts.

        A current write has `LAST_SECONDS` more: one that is cut in its first step leaves gRPC no way to send a status.
        """
        if self._ended is None:
            self._ended = refusal
            self.drop()
            self._some.set()
            self._limit.shorten(LAST_SECONDS)

    def drop(self) -> None:
        """Let go of everything that waits."""
        self._waiting.clear()
        self._echo = ()
        self._writing = 0
        self._change(-self.unread)

    def close(self) -> None:
        """Let go of everything; nothing is written any more."""
        self.drop()
        self._limit.close()

    def hasten(self, seconds: float) -> None:
        """Let the current write and all later ones take at most so many seconds from now."""
        self._seconds = min(self._seconds, seconds)
        self._limit.shorten(seconds)

    async def take(self) -> Item:
        """Wait for the next event; consecutive deltas of one output come together.

        Raises:
            Refusal: the stream was ended.
        """
        while self._ended is None and not self._waiting:
            self._some.clear()
            await self._some.wait()
        if self._ended is not None:
            raise self._ended
        event, size, index = self._waiting[0]
        if isinstance(event, NewTokens) and (piece := self._next_echo(index)) is not None:
            self.index = index
            return [piece]
        self._waiting.popleft()
        self._writing, self.index = size, index
        if not isinstance(event, NewTokens):
            return event
        deltas, others = [event], list[tuple[Kept, int, int]]()
        while self._waiting and max(len(deltas), len(others)) < MOST_JOINED:
            following, size, index = self._waiting[0]
            if index == self.index:
                if not isinstance(following, NewTokens) or self._writing + size > MOST_JOINED_BYTES:
                    break
                deltas.append(following)
                self._writing += size
            else:
                others.append((following, size, index))
            self._waiting.popleft()
        self._waiting.extendleft(reversed(others))
        return deltas

    def _next_echo(self, index: int) -> NewTokens | None:
        """The next piece of the prompt that comes before the first token of an output; None if it has had all."""
        had = self._echoed.get(index, 0)
        if had == len(self._echo):
            return None
        self._echoed[index] = had + 1
        return self._echo[had]

    async def written(self, writing: Awaitable[None]) -> None:
        """Wait until what was taken last is written; its bytes then count no more.

        Raises:
            Refusal: the stream was ended meanwhile, or the write took too long.
        """
        seconds = self._seconds
        if not await self._limit.wait(writing, seconds):
            stood = min(seconds, self._seconds)
            ended = self._ended or too_slow(f"a write stood still for {stood:g} s; allowed are {stood:g}; read faster")
            self.end(ended)
            raise ended
        self._change(-self._writing)
        self._writing = 0

    def _change(self, size: int) -> None:
        self.unread += size
        self._count(size)


class Streams:
    """All open streams, by tenant and request id, and by number. Other threads may only call `listen`.

    A stream that leaves too much unread is ended. If all together do, the one with the most is.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits, self._write_seconds = limits, limits.write_seconds
        self._loop = asyncio.get_running_loop()
        self._by_id: dict[tuple[str, str], Stream] = {}
        self._open = TenantCounts()
        self._by_number: dict[int, Stream] = {}
        self._early: dict[int, list[tuple[int, EngineEvent]]] = {}  # with their order
        self._order = count()
        self._submitting = 0
        self._unread = 0
        self._none = asyncio.Event()
        self._none.set()

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def unread(self) -> int:
        """Bytes of all streams that are not written yet."""
        return self._unread

    def full(self, beside: TenantCounts) -> bool:
        """Whether no stream can begin beside these calls, which have none any more."""
        return len(self._by_id) + beside.total >= self._limits.streams

    def open(self, tenant: str, request_id: str, beside: TenantCounts, progress: bool = False) -> Stream:
        """Begin a tenant's stream; calls `beside` have no stream any more, but clients that do not read their status.

        With `progress` it has events about the prompt.

        Raises:
            Refusal: the most streams are open, of all or of the tenant, or one with this id is the tenant's.
        """
        most, own = self._limits.streams, self._limits.tenant_streams
        if self.full(beside):
            raise too_busy(f"{most} streams are open; allowed are {most}")
        if own is not None and self._open[tenant] + beside[tenant] >= own:
            raise too_busy(f"{own} streams of yours are open; each tenant is allowed {own}")
        if (tenant, request_id) in self._by_id:
            raise Refusal(StatusCode.ALREADY_EXISTS, f"a request with the id {request_id} is running; give another id")
        stream = Stream(tenant, request_id, self._write_seconds, self._count, progress)
        self._by_id[tenant, request_id] = stream
        self._open.add(tenant, 1)
        self._none.clear()
        return stream

    def expect(self) -> None:
        """Keep early events, because a request is being submitted; each call needs one `bind`."""
        self._submitting += 1

    def bind(self, stream: Stream, number: int | None, outputs: int = 1) -> None:
        """Give a stream the number of its request, which has some outputs, or None if the request was refused."""
        self._submitting -= 1
        if number is not None:
            stream.number, stream.outputs = number, outputs
            self._by_number.update(dict.fromkeys(stream.numbers, stream))
            early = [(*one, number) for number in stream.numbers for one in self._early.pop(number, ())]
            early.sort(key=itemgetter(0))
            self._pass_on(stream, [(number, event) for _, event, number in early])
        if not self._submitting:
            self._early.clear()

    def close(self, stream: Stream) -> None:
        """Forget a stream and what waits in it."""
        stream.close()
        if self._by_id.pop((stream.tenant, stream.request_id), None) is not None:
            self._open.add(stream.tenant, -1)
        for number in stream.numbers:
            self._by_number.pop(number, None)
        if not self._by_id:
            self._none.set()

    def find(self, tenant: str, request_id: str) -> Stream | None:
        """The tenant's open stream with this id, if there is one."""
        return self._by_id.get((tenant, request_id))

    def end_all(self, refusal: Refusal) -> None:
        """End every stream with a status."""
        for stream in self._by_id.values():
            stream.end(refusal)

    def hasten(self, seconds: float) -> None:
        """Let no write of any stream take more seconds than that, from now on."""
        self._write_seconds = min(self._write_seconds, seconds)
        for stream in self._by_id.values():
            stream.hasten(seconds)

    async def closed(self) -> None:
        """Wait until no stream is open."""
        await self._none.wait()

    def listen(self, events: list[tuple[int, EngineEvent]]) -> None:
        """Pass the events of a tick to the event loop; this is the engine's listener."""
        self._loop.call_soon_threadsafe(self._deliver, events)

    def _deliver(self, events: list[tuple[int, EngineEvent]]) -> None:
        for number, event in events:
            stream = self._by_number.get(number)
            if stream is not None:
                self._pass_on(stream, ((number, event),))
            elif self._submitting:
                self._early.setdefault(number, []).append((next(self._order), event))

    def _pass_on(self, stream: Stream, events: Sequence[tuple[int, EngineEvent]]) -> None:
        assert stream.number is not None
        for number, event in events:
            stream.put(event, number - stream.number)
        most, total = self._limits.unread_bytes, self._limits.unread_total_bytes
        if stream.unread > most:
            stream.end(too_slow(f"{stream.unread:,} bytes of the output are unread; allowed are {most:,}; read faster"))
        while self._unread > total:
            slowest = max(self._by_id.values(), key=lambda open_one: open_one.unread)
            slowest.end(
                too_slow(
                    f"{self._unread:,} bytes of all streams are unread; allowed are {total:,}; this one had the most, "
                    f"{slowest.unread:,}; read faster"
                )
            )

    def _count(self, change: int) -> None:
        self._unread += change
