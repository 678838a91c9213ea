"""Prometheus metrics over HTTP, from the event loop: a connection that says nothing holds no thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from medha_jax.net import listening_sockets

SECONDS = 5.0  # that a connection may take from its first byte to its last
MOST_OPEN = 64  # connections; the oldest is cut for another one
MOST_HEAD = 16384  # bytes of a request


class MetricsEndpoint:
    """Answers GET of `/metrics`. Belongs to the event loop; owns its connections."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._open: dict[asyncio.Task[None], None] = {}  # oldest first
        self._one = asyncio.Lock()  # scrapes are made one after the other

    @contextlib.asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[int]:
        """Listen while the block runs; gives the port. Port 0 takes a free one.

        Raises:
            OSError: the address is in use, or not this machine's.
        """
        listeners = listening_sockets(host, port)
        servers = [await asyncio.start_server(self._connected, sock=one, limit=MOST_HEAD) for one in listeners]
        try:
            yield int(listeners[0].getsockname()[1])
        finally:
            for server in servers:
                server.close()
            for task in self._open:
                task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= MOST_OPEN:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        self._open[task] = None
        try:
            async with asyncio.timeout(SECONDS):
                writer.write(await self._answer(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client is gone, slow, or no HTTP client
        finally:
            self._open.pop(task, None)
            writer.transport.abort()

    async def _answer(self, head: bytes) -> bytes:
        """The bytes of the whole answer to a request's head."""
        request, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"only GET\n", True)
        if path not in ("/metrics", "/"):
            return _response("404 Not Found", "text/plain", b"the metrics are at /metrics\n", method == "GET")
        encode: Callable[[CollectorRegistry], bytes]
        encode, kind = choose_encoder(headers.get("accept", ""))
        async with self._one:
            body = await asyncio.to_thread(encode, self._registry)
        return _response("200 OK", kind, body, method == "GET")


def _response(status: str, kind: str, body: bytes, whole: bool) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (body if whole else b"")
