"""Open streams carry events from the engine's thread to the coroutine that writes them to a client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from grpc import StatusCode

from medha_jax.engine import Completed, EngineEvent, Failed, NewTokens, Prefilled, Queued
from medha_jax.server.refusal import Refusal, too_busy

MOST_JOINED = 256  # deltas in one message
Item = Queued | list[NewTokens] | Completed | Failed | Refusal


class Stream:
    """The events that wait to be written to one client. Belongs to the event loop.

    Waiting deltas are written together. A slow reader holds no more than its own output, and the engine never waits
    for it.

    Attributes:
        number: the engine's number of the request, once it has one.
        over: whether the coroutine has taken the engine's last event.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.number: int | None = None
        self.over = False
        self._waiting: deque[Queued | NewTokens | Completed | Failed | Refusal] = deque()
        self._some = asyncio.Event()

    def put(self, event: Queued | NewTokens | Completed | Failed | Refusal) -> None:
        """Add an event."""
        self._waiting.append(event)
        self._some.set()

    async def take(self) -> Item:
        """Wait for the next event; consecutive deltas come together."""
        while not self._waiting:
            self._some.clear()
            await self._some.wait()
        event = self._waiting.popleft()
        if not isinstance(event, NewTokens):
            return event
        deltas = [event]
        while self._waiting and len(deltas) < MOST_JOINED:
            following = self._waiting[0]
            if not isinstance(following, NewTokens):
                break
            deltas.append(following)
            self._waiting.popleft()
        return deltas


class Streams:
    """All open streams, at most `most`, by request id and by number. Other threads may only call `listen`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._by_id: dict[str, Stream] = {}
        self._by_number: dict[int, Stream] = {}
        self._early: dict[int, list[EngineEvent]] = {}
        self._submitting = 0
        self._none = asyncio.Event()
        self._none.set()

    def __len__(self) -> int:
        return len(self._by_id)

    def open(self, request_id: str) -> Stream:
        """Begin a stream.

        Raises:
            Refusal: the most streams are open, or one with this id is.
        """
        if len(self._by_id) >= self._most:
            raise too_busy(f"{self._most} streams are open; allowed are {self._most}")
        if request_id in self._by_id:
            raise Refusal(StatusCode.ALREADY_EXISTS, f"a request with the id {request_id} is running; give another id")
        stream = self._by_id[request_id] = Stream(request_id)
        self._none.clear()
        return stream

    def expect(self) -> None:
        """Keep early events, because a request is being submitted; each call needs one `bind`."""
        self._submitting += 1

    def bind(self, stream: Stream, number: int | None) -> None:
        """Give a stream the number of its request, or None if the request was refused."""
        self._submitting -= 1
        if number is not None:
            stream.number = number
            self._by_number[number] = stream
            self._pass_on(stream, self._early.pop(number, ()))
        if not self._submitting:
            self._early.clear()

    def close(self, stream: Stream) -> None:
        """Forget a stream."""
        self._by_id.pop(stream.request_id, None)
        if stream.number is not None:
            self._by_number.pop(stream.number, None)
        if not self._by_id:
            self._none.set()

    def find(self, request_id: str) -> Stream | None:
        """The open stream with this id, if there is one."""
        return self._by_id.get(request_id)

    def end_all(self, refusal: Refusal) -> None:
        """End every stream with a status."""
        for stream in self._by_id.values():
            stream.put(refusal)

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
                self._pass_on(stream, (event,))
            elif self._submitting:
                self._early.setdefault(number, []).append(event)

    def _pass_on(self, stream: Stream, events: Sequence[EngineEvent]) -> None:
        for event in events:
            if not isinstance(event, Prefilled):
                stream.put(event)
