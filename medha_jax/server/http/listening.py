"""The HTTP server: its socket, how many connections it has, and how long one may be silent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from aiohttp import web

from medha_jax.server.security import Secrets, server_context
from medha_jax.server.settings import ServerSettings

MOST_HEADER = 16384  # bytes of a request's first line, and of each header
LAST_SECONDS = 1.0  # for answers that are being written when the server ends


class _Refused(asyncio.Protocol):
    """Closes a connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class _Connections:
    """Makes the protocol of each connection. Belongs to the event loop.

    At most `most` are open. One that has made no request after `seconds` is closed, which aiohttp does only after a
    first request.
    """

    def __init__(self, most: int | None, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._silent = set[asyncio.BaseProtocol]()

    @web.middleware
    async def heard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Note that a connection has made a request."""
        self._silent.discard(request.protocol)
        answer: web.StreamResponse = await handler(request)
        return answer

    def made_by(self, server: web.Server) -> asyncio.Protocol:
        """The protocol of a new connection."""
        if self._most is not None and len(server.connections) >= self._most:
            return _Refused()
        made = server()
        self._silent.add(made)
        asyncio.get_running_loop().call_later(self._seconds, self._look, made)
        return made

    def _look(self, made: web.RequestHandler) -> None:
        """Close a connection that only connected."""
        if made in self._silent:
            self._silent.discard(made)
            made.force_close()


@contextlib.asynccontextmanager
async def listening(
    app: web.Application, settings: ServerSettings, port: int, secrets: Secrets, most: int | None
) -> AsyncIterator[int]:
    """Answer requests while the block runs; gives the port. Port 0 takes a free one. None is no limit of connections.

    Raises:
        OSError, UnicodeError: the address is in use, not this machine's, or no address.
    """
    family, _, _, _, address = socket.getaddrinfo(settings.host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.create_server(address[:2], family=family)
    connections = _Connections(most, settings.handshake_seconds)
    app.middlewares.insert(0, connections.heard)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # who goes away wants no answer
        access_log=None,
        keepalive_timeout=settings.idle_seconds,
        shutdown_timeout=LAST_SECONDS,
        max_line_size=MOST_HEADER,
        max_field_size=MOST_HEADER,
    )
    await runner.setup()
    assert runner.server is not None
    context = None if secrets.certificates is None else server_context(secrets.certificates)
    server = await asyncio.get_running_loop().create_server(
        partial(connections.made_by, runner.server),
        sock=listener,
        ssl=context,
        ssl_handshake_timeout=None if context is None else settings.handshake_seconds,
    )
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.close()
        await runner.cleanup()
