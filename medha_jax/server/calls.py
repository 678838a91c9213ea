"""The frame of every call: its status, its line in the log, its deadline, and work outside the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message
from grpc import StatusCode, aio

from medha_jax.engine import ErrorLog
from medha_jax.server.access_log import AccessLog, Record
from medha_jax.server.connections import Connections, Context, expired, time_remaining
from medha_jax.server.receiving import NoMessageError, Receiving, no_message
from medha_jax.server.refusal import Refusal, internal, invalid
from medha_jax.server.request_parser import parse
from medha_jax.tenants import TenantCounts

SMALL = 16384  # bytes of a message or of token ids; up to here work takes below 1 ms and stays in the event loop
SMALL_TEXT = 512  # bytes of a text, which takes 1 to 2 us a byte to tokenize
SHORT = 65536  # bytes; longer work has threads of its own, so that no short prompt waits for it
STATUS_SECONDS = 0.25  # that a call waits for its status to be sent; less than a server that ends waits for its calls
T = TypeVar("T")
M = TypeVar("M", bound=Message)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Received(Generic[T]):
    """A message, its size in bytes, and when it had come, in seconds of the engine's clock."""

    message: T
    size: int
    came: float


class Counting(Protocol):
    """Counts requests. The event loop calls it."""

    def accepted(self, tenant: str) -> None:
        """Count a request that the engine took."""

    def refused(self, reason: str, tenant: str) -> None:
        """Count a request that was never accepted."""

    def ended(self, record: Record) -> None:
        """Count the tokens of a request whose call is over."""


class Workers:
    """Threads for the work that would block the event loop: some for short work, some for what is longer than `SHORT`.

    Args:
        threads: of each kind.
    """

    def __init__(self, threads: int) -> None:
        self._short, self._long = (ThreadPoolExecutor(threads, name) for name in ("short-work", "long-work"))

    async def do(self, size: int, work: Callable[[], T]) -> T:
        """Do work on `size` bytes in a thread."""
        pool = self._short if size <= SHORT else self._long
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def close(self) -> None:
        """Let the threads end; work that has not begun is dropped."""
        for pool in (self._short, self._long):
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _Unsent:
    """A call whose status its client has not read since a time, in seconds of the clock."""

    tenant: str
    peer: str
    since: float


class Calls:
    """Begins and ends calls. Belongs to the event loop.

    `clock` is the engine's. `workers` do the work that would block the loop. `counting` hears what becomes of requests.
    Messages come in turns of `receiving`, within `seconds` each. `connections` are told each call.

    Attributes:
        unsent: calls that are over except for a status that their clients do not read.
    """

    def __init__(
        self,
        log: AccessLog,
        clock: Callable[[], float],
        workers: Workers,
        counting: Counting | None,
        receiving: Receiving,
        seconds: float,
        connections: Connections,
    ) -> None:
        self._log, self._clock, self._workers, self._counting = log, clock, workers, counting
        self.receiving, self._seconds = receiving, seconds
        self._connections = connections
        self._errors = ErrorLog(clock, "the access log")
        self._unsent: dict[asyncio.Future[None], _Unsent] = {}
        self.unsent = TenantCounts()

    def give_up_unsent(self, seconds: float) -> None:
        """Close the connection with the most calls whose status was not read for so many seconds, if there is one."""
        before = self._clock() - seconds
        peers = Counter(unsent.peer for unsent in self._unsent.values() if unsent.since <= before)
        for peer, count in peers.most_common():
            if self._connections.close(
                peer, f"it did not read the end of {count} calls, and the streams are all taken"
            ):
                for sending in [one for one, unsent in self._unsent.items() if unsent.peer == peer]:
                    self.unsent.add(self._unsent.pop(sending).tenant, -1)
                return

    def now(self) -> float:
        """Seconds of the engine's clock."""
        return self._clock()

    def accepted(self, record: Record) -> None:
        """Note that the engine took the request of a call."""
        record.accepted = True
        if self._counting is not None:
            self._counted(self._counting.accepted, record.tenant)

    def refused(self, code: str, tenant: str) -> None:
        """Count a tenant's request that was never accepted."""
        if self._counting is not None:
            self._counted(self._counting.refused, code, tenant)

    @asynccontextmanager
    async def answered(
        self, method: str, context: Context, tenant: str, request: bool = False, began: float | None = None
    ) -> AsyncIterator[Record]:
        """Log a tenant's call at its end, and answer a `Refusal` or an error with its status.

        A call with a `request` for the engine is refused if it ends before its record says that it was accepted. Its
        time counts from `began` where that is given, else from now.
        """
        record = Record(method, context.peer(), tenant, accepted=False if request else None)
        with self._connections.call(context, lambda: record.accepted is True):
            began = self._clock() if began is None else began
            try:
                yield record
            except Refusal as refusal:
                await self._abort(record, context, refusal)
            except asyncio.CancelledError:
                late = expired(context)
                if late or not record.reason:
                    record.code = (StatusCode.DEADLINE_EXCEEDED if late else StatusCode.CANCELLED).name
                raise
            except (aio.UsageError, aio.InternalError):  # the client is gone, perhaps in the middle of a write
                if not record.reason:  # else it left with the last event
                    record.code = StatusCode.CANCELLED.name
                raise asyncio.CancelledError from None  # gRPC then sends no status: each that fails loses some memory
            except Exception:
                logger.exception("an error in %s %s", method, record.request_id)
                await self._abort(record, context, internal())
            finally:
                record.e2e_ms = 1000 * (self._clock() - began)
                self._over(record, request)

    def _over(self, record: Record, request: bool) -> None:
        """Count and log a call. It has its status already, which no error in here may replace."""
        try:
            if record.accepted is False:
                self.refused(record.code, record.tenant)
            if request and self._counting is not None:
                self._counted(self._counting.ended, record)
            self._log.end(record)
        except Exception as error:
            self._errors(error)

    def _counted(self, count: Callable[..., None], *what: object) -> None:
        """Count something; an error in that ends no call."""
        try:
            count(*what)
        except Exception as error:
            self._errors(error)

    async def aside(self, size: int, work: Callable[[], T], small: int = SMALL) -> T:
        """Do work on `size` bytes without blocking the loop; up to `small` bytes it is done at once."""
        return work() if size <= small else await self._workers.do(size, work)

    @asynccontextmanager
    async def received(self, kind: type[M], messages: AsyncIterator[bytes]) -> AsyncIterator[Received[M]]:
        """The one message of a call; it counts as being received until the block ends.

        Raises:
            Refusal: none came in time, or as in `request_parser.parse`.
        """
        async with self.read(lambda data: parse(kind, data), messages, f"send a {kind.DESCRIPTOR.name}") as received:
            yield received

    @asynccontextmanager
    async def read(
        self, understand: Callable[[bytes], T], messages: AsyncIterator[bytes], hint: str, small: int = SMALL
    ) -> AsyncIterator[Received[T]]:
        """What `understand` makes of the one message of a call; `hint` says what to do where there is none.

        Of messages of more than `small` bytes a thread makes it.

        Raises:
            Refusal: none came in time, or as `understand` raises.
        """
        ends = asyncio.get_running_loop().time() + self._seconds
        try:
            async with self.receiving.message(messages, ends) as data:
                if data is None:
                    raise invalid(f"the call has no message; {hint}")
                came = self._clock()
                yield Received(await self.aside(len(data), lambda: understand(data), small), len(data), came)
        except NoMessageError:
            raise no_message(self._seconds) from None

    async def refuse(self, method: str, context: Context, tenant: str, refusal: Refusal) -> None:
        """Log, count and answer a call that is refused before there is a request."""

        async def refused() -> None:
            async with self.answered(method, context, tenant, request=True):
                raise refusal

        await asyncio.wait((asyncio.create_task(refused()),))

    def deadline(self, context: Context) -> float | None:
        """When the caller stops waiting, on the engine's clock."""
        remaining = time_remaining(context)
        return None if remaining is None else self._clock() + remaining

    async def _abort(self, record: Record, context: Context, refusal: Refusal) -> None:
        """Send a status. If its client does not read what comes before it, the call ends and the status waits alone."""
        record.code, record.message = refusal.code.name, refusal.logged
        sending = asyncio.ensure_future(refusal.abort(context))
        sending.add_done_callback(self._sent)
        await asyncio.wait((sending,), timeout=STATUS_SECONDS)
        if sending.done():
            with suppress(aio.InternalError):  # the client is gone
                await sending
        else:
            self._unsent[sending] = _Unsent(record.tenant, context.peer(), self._clock())
            self.unsent.add(record.tenant, 1)
        raise asyncio.CancelledError  # gRPC then adds no status of its own

    def _sent(self, sending: asyncio.Future[None]) -> None:
        if (unsent := self._unsent.pop(sending, None)) is not None:
            self.unsent.add(unsent.tenant, -1)
        if not sending.cancelled():
            sending.exception()  # gRPC always raises one
